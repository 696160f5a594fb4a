"""What the other processes of a distributed run execute: `python worker.py RUN_FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def main() -> None:
    """Read the run's configuration and train along."""
    from attnseg.engine.schema import check
    from attnseg.engine.train import follow

    folder = Path(sys.argv[1])
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    choices = json.loads((folder / "run.json").read_text())["choices"]
    follow(check({**config, "choices": choices}), folder)


if __name__ == "__main__":
    main()
