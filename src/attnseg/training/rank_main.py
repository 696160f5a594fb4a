"""What the other processes of a distributed run execute: `python worker.py RUN_FOLDER`."""

import sys


def main() -> None:
    """Read the run's configuration and train along."""
    from attnseg.errors import ConfigError
    from attnseg.processes.launch import ProcessGroup
    from attnseg.runs.run_folder import RunFolder
    from attnseg.training.train import follow

    folder = RunFolder(sys.argv[1])
    config = folder.config
    try:
        follow(config, folder.path, ProcessGroup(config.trainer.devices))
    except (KeyboardInterrupt, SystemExit) as ended:
        # Ended for what the first process knows, too: for another exit code it would be killed.
        if isinstance(ended, SystemExit) and ended.code not in (143, ConfigError.exit_code):
            raise


if __name__ == "__main__":
    main()
