"""The ranks above 0 of a distributed run: they train along, and write and evaluate nothing.

Lightning starts them as `python rank_main.py RUN_FOLDER PLUGIN...`, unless torchrun or srun has
started all ranks with the command of rank 0.
"""

import logging
import sys
from pathlib import Path

from attnseg.config.training import Config
from attnseg.errors import AttnsegError, ConfigError
from attnseg.plugins import add_files
from attnseg.processes.launch import ProcessGroup
from attnseg.processes.signals import Stopping
from attnseg.runs.run_folder import RunFolder
from attnseg.training.fit import fit
from attnseg.training.setup import set_up_training


def follow_rank_zero(config: Config, folder: Path, group: ProcessGroup) -> None:
    """Train as a rank above 0 in the run folder of rank 0; print failures it cannot know."""
    logging.getLogger("attnseg").setLevel(logging.ERROR)
    setup = set_up_training(config)
    try:
        with Stopping() as stopping:
            fit(setup, RunFolder(folder), group, stopping)
    except AttnsegError as error:
        if not isinstance(error, ConfigError):  # Every rank raises those, and rank 0 reports them.
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from error


def run_rank() -> None:
    """Read the configuration from the run folder that the command line names, and train."""
    folder = RunFolder(sys.argv[1])
    # Lightning appends options of Hydra.
    add_files(argument for argument in sys.argv[2:] if argument.endswith(".py"))
    config = folder.config
    try:
        follow_rank_zero(config, folder.path, ProcessGroup(config.trainer.devices))
    except (KeyboardInterrupt, SystemExit) as error:
        # Exit with code 0 when rank 0 reports the same: otherwise the launcher would kill rank 0.
        if isinstance(error, SystemExit) and error.code not in (143, ConfigError.exit_code):
            raise


if __name__ == "__main__":
    run_rank()
