"""The table of commands: `attnseg COMMAND KEY=VALUE ...`."""

import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from attnseg.cli.completion import complete_line
from attnseg.cli.failures import report_error
from attnseg.cli.hydra_app import run_command
from attnseg.commands import (
    benchmark,
    capsule,
    check,
    check_gpu,
    compare,
    completion,
    convert,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    metrics_diff,
    new,
    phantom,
    plan,
    predict,
    prepare,
    preview,
    probe,
    publish,
    search,
    status,
    train,
    verify,
    view,
)
from attnseg.commands.completion import QUERY
from attnseg.config.errors import nearest
from attnseg.errors import ConfigError

MODULES = (
    demo, train, prepare, preview, phantom, status, evaluate, predict, view, metrics_diff, explain,
    compare, plan, export, capsule, verify, publish, search, benchmark, check, check_gpu, probe,
    convert, doctor, completion, new,
)  # fmt: skip
START = """\
attnseg COMMAND KEY=VALUE ...

Start with one of these:
  attnseg demo           trains on generated scans and draws a prediction, in a minute
  attnseg doctor         examines this machine, and says what to do about each problem
  attnseg train --help   lists all options of a training, with examples
  attnseg --help         lists all commands"""
COMMANDS = {module.COMMAND.name: module.COMMAND for module in MODULES}


def run_program(arguments: Sequence[str]) -> NoReturn:
    """Run the command that the first argument names, and exit with its code."""
    if not arguments:
        print_lines([START])
    name, *arguments = arguments
    if name in ("-h", "--help"):
        commands = [f"  {each.name:12} {each.header}" for each in COMMANDS.values()]
        footer = "\nattnseg COMMAND --help lists every choice."
        print_lines(["attnseg COMMAND KEY=VALUE ...\n", *commands, footer])
    if name == QUERY:
        print_lines(complete_line(" ".join(arguments), COMMANDS))
    if name not in COMMANDS:
        sys.exit(report_error(ConfigError(f"{name}: no such command; {nearest(name, COMMANDS)}")))
    run_command(COMMANDS[name], arguments)


def print_lines(lines: Iterable[str]) -> NoReturn:
    """Print some lines and exit; a reader that has closed the pipe, such as `head`, is no error."""
    try:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    except BrokenPipeError as error:
        sys.exit(report_error(error))
    sys.exit(0)
