"""The table of commands: `attnseg COMMAND KEY=VALUE ...`."""

import atexit
import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

from attnseg.cli.completion import complete_line
from attnseg.cli.failures import report_error
from attnseg.cli.hydra_app import run_command
from attnseg.commands import (
    benchmark,
    capsule,
    check,
    compare,
    completion,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    metrics_diff,
    new,
    phantom,
    predict,
    prepare,
    preview,
    publish,
    search,
    status,
    train,
    verify,
)
from attnseg.commands.completion import QUERY
from attnseg.config.errors import nearest
from attnseg.errors import ConfigError

MODULES = (
    demo, train, prepare, preview, phantom, status, evaluate, predict, metrics_diff, explain,
    compare, export, capsule, verify, publish, search, benchmark, check, doctor,
    completion, new,
)  # fmt: skip
START = """\
attnseg COMMAND KEY=VALUE ...

Start with one of these:
  attnseg demo           trains on generated scans and draws a prediction, in a minute
  attnseg doctor         examines this machine, and says what to do about each problem
  attnseg train --help   lists all options of a training, with examples
  attnseg --help         lists all commands"""
# Python would search the libraries' millions of objects for garbage when it exits, for a second.
atexit.register(gc.freeze)
COMMANDS = {module.COMMAND.name: module.COMMAND for module in MODULES}


def run_program(arguments: Sequence[str]) -> NoReturn:
    """Run the command that the first argument names, and exit with its code."""
    if not arguments:
        print(START)
        sys.exit(0)
    name, *arguments = arguments
    if name in ("-h", "--help"):
        print("attnseg COMMAND KEY=VALUE ...\n")
        for command in COMMANDS.values():
            print(f"  {command.name:12} {command.header}")
        print("\nattnseg COMMAND --help lists every choice.")
        sys.exit(0)
    if name == QUERY:
        for result in complete_line(" ".join(arguments), COMMANDS):
            print(result)
        sys.exit(0)
    if name not in COMMANDS:
        sys.exit(report_error(ConfigError(f"{name}: no such command; {nearest(name, COMMANDS)}")))
    run_command(COMMANDS[name], arguments)
