"""The command line. `cli.train()` and the like run one command with the arguments of `sys.argv`."""

import sys
from collections.abc import Callable
from typing import NoReturn

from attnseg.cli.hydra_app import run_command
from attnseg.cli.main import COMMANDS, main

__all__ = ["COMMANDS", "main"]


def __getattr__(name: str) -> Callable[[], NoReturn]:
    """Return a command of the table as a function."""
    if name not in COMMANDS:
        raise AttributeError(f"module 'attnseg.cli' has no attribute {name!r}")
    return lambda: run_command(COMMANDS[name], sys.argv[1:])
