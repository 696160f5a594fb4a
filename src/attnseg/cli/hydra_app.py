"""Calls a command: Hydra composes its configuration, once or for each job of a sweep.

Kept free of torch, so that help and mistyped commands are answered at once.
"""

import argparse
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra.version
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from attnseg import plugins
from attnseg.cli import sweeps
from attnseg.cli.failures import log, report_error, send_log_to_terminal, translate_hydra_error
from attnseg.cli.help import help_text
from attnseg.cli.literal_text import quote_text_options
from attnseg.commands.command import Command, Invocation
from attnseg.config.composition import compose, to_raw
from attnseg.config.errors import nearest
from attnseg.config.folder import configs_folder
from attnseg.errors import ConfigError

FLAGS = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--info",
    "-h", "-c", "-p", "-r", "-m", "-sc", "-cp", "-cn", "-cd", "-i",
)  # fmt: skip


def ignore_folder(folder: Path) -> None:
    """Do nothing with the run folder: only a sweep notes it."""


def run_command(command: Command, arguments: Sequence[str]) -> NoReturn:
    """Run a command with the arguments after its name, each of its jobs with `-m`, and exit."""
    send_log_to_terminal()
    files, arguments = plugins.split_arguments(to_hydra(command, arguments))
    codes: list[int] = []

    def task(composed: DictConfig) -> None:
        if not log.handlers:  # A launcher runs this in a process of its own.
            send_log_to_terminal()
            plugins.add_files(files)
        config = HydraConfig.get()
        overrides: Any = OmegaConf.to_container(config.overrides.task, resolve=False)

        def perform(on_folder: Callable[[Path], None] = ignore_folder) -> None:
            call(command, to_raw(composed, config.runtime.choices), overrides, on_folder)

        if config.mode == RunMode.MULTIRUN:
            importlib.import_module("attnseg.training.train")  # once, not in every child
            code = sweeps.run_job(perform, report_error)
            if sweeps.Sweep.current is None:  # A ledger has the codes of all processes' jobs.
                codes.append(code)
            return
        try:
            perform()
        except Exception as error:
            codes.append(report_error(error))

    try:
        plugins.add_files(files)
        check_flags(arguments)
        if {"-h", "--help"} & set(arguments):
            overrides = [argument for argument in arguments if not argument.startswith("-")]
            print(help_text(command, overrides), flush=True)
            sys.exit(0)
        run_hydra(command.config_name, arguments, task)
    except KeyboardInterrupt:
        codes = [130]
    except SystemExit as error:
        codes = [error.code if isinstance(error.code, int) else 1]
    except Exception as error:
        codes.append(report_error(translate_hydra_error(error, command.config_name, arguments)))
    if max(codes, default=0) > 128:
        name = signal.Signals(max(codes) - 128).name
        print(f"error: stopped by {name}; the same command goes on", file=sys.stderr, flush=True)
    try:
        codes.append(sweeps.close())
    except Exception as error:
        codes.append(report_error(error))
    sys.exit(max(codes))


def to_hydra(command: Command, arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra takes them, conveniences translated.

    Several profiles, loggers or formats serve one job, for which Hydra has brackets; and its parser
    wants `-m` before any KEY=VALUE. Paths are taken as they are typed.
    """
    translated = [
        re.sub(r"^(profile|logger|formats)=([\w,]+)$", r"\1=[\2]", argument)
        for argument in command.translate(list(arguments))
    ]
    flags = [argument for argument in translated if argument in ("-m", "--multirun")]
    return quote_text_options(flags[:1] + [each for each in translated if each not in flags])


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that Hydra does not know with a `ConfigError`."""
    for argument in arguments:
        flag = argument.split("=")[0]
        if flag.startswith("-") and flag not in FLAGS:
            raise ConfigError(f"{flag}: no such flag; {nearest(flag, FLAGS)}")


def run_hydra(
    config_name: str, arguments: Sequence[str], task: Callable[[DictConfig], None]
) -> None:
    """Let Hydra compose a configuration and run a task, as `hydra.main` does.

    `hydra.main` reads its arguments from `sys.argv` alone; the function that it calls takes them.
    """
    from hydra._internal.utils import _run_hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through: we report them ourselves
    hydra.version.setbase("1.3")
    parser = hydra_parser()
    _run_hydra(
        args=parser.parse_args(list(arguments)),
        args_parser=parser,
        task_function=task,
        config_path=str(configs_folder()),
        config_name=config_name,
    )


def hydra_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's flags."""
    from hydra._internal.utils import get_args_parser

    if sys.version_info >= (3, 14):  # Hydra 1.3 has a help that is not a string, now refused.
        argparse.ArgumentParser._check_help = lambda *_: None  # type: ignore[attr-defined]
    parser: argparse.ArgumentParser = get_args_parser()
    for action in parser._actions:
        if action.dest == "shell_completion":
            action.help = "Install or uninstall shell completion"
    return parser


def call(
    command: Command,
    raw: dict[str, Any],
    overrides: Sequence[str],
    on_folder: Callable[[Path], None] = ignore_folder,
) -> None:
    """Check the plain configuration of a command and run it."""
    options = command.parse(raw)
    if command.run_invocation is None:
        command.run(options)
        return

    compose_again = partial(compose_raw, command)

    def call_again(more: Sequence[str]) -> int:
        try:
            call(command, compose_again(more), more)
        except Exception as error:
            return report_error(error)
        return 0

    invocation = Invocation(overrides, on_folder, report_error, compose_again, call_again)
    command.run_invocation(options, invocation)


def compose_raw(command: Command, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the plain configuration of a command with some overrides."""
    try:
        composed = compose(command.config_name, overrides)
    except Exception as error:
        raise translate_hydra_error(error, command.config_name, overrides) from error
    return to_raw(composed)
