"""What the other processes of a distributed run execute: `python worker.py RUN_FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def main() -> None:
    """Read the run's configuration and train along."""
    from attnseg.config.schema import check
    from attnseg.errors import ConfigError
    from attnseg.processes.launch import Together
    from attnseg.training.train import follow

    folder = Path(sys.argv[1])
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    choices = json.loads((folder / "run.json").read_text())["choices"]
    checked = check({**config, "choices": choices})
    try:
        follow(checked, folder, Together(checked.trainer.devices))
    except (KeyboardInterrupt, SystemExit) as ended:
        # Ended for what the first process knows, too: for another exit code it would be killed.
        if isinstance(ended, SystemExit) and ended.code not in (143, ConfigError.exit_code):
            raise


if __name__ == "__main__":
    main()
