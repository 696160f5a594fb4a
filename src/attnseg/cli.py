"""Commands: Hydra composes the configuration, the engine does the work, errors end in one line.

Kept free of torch, so that help and mistyped commands are answered at once.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from attnseg.engine import schema
from attnseg.errors import AttnsegError, ConfigError

CONFIGS = "pkg://attnseg.configs"
GROUPS = Path(__file__).parent / "configs"
log = logging.getLogger("attnseg")


def main() -> NoReturn:
    """Run `attnseg COMMAND ...`."""
    commands = {"train": train}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("attnseg COMMAND KEY=VALUE ...\n")
        for command, function in commands.items():
            print(f"  {command:10} {(function.__doc__ or '').splitlines()[0]}")
        print("\nattnseg COMMAND --help lists every choice.")
        sys.exit(0)
    if name not in commands:
        end(ConfigError(f"{name}: no such command; {schema.nearest(name, commands)}"))
    del sys.argv[1]
    commands[name]()


def train() -> NoReturn:
    """Train, validate and test one model, or several with -m."""

    def job(config: schema.Config, text: str) -> None:
        from attnseg.engine.train import train  # imports torch

        train(config, text)

    run("train", job)


def run(config_name: str, job: Callable[[schema.Config, str], None]) -> NoReturn:
    """Compose the configuration from `sys.argv`, run `job` for it (each one with -m), and exit."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through: we report them ourselves
    send_log_to_terminal()
    failed: list[int] = []

    def task(composed: DictConfig) -> None:
        try:
            plain = to_plain(composed)
            job(schema.check(plain), OmegaConf.to_yaml(composed, resolve=True))
        except Exception as error:
            if HydraConfig.get().mode is None or HydraConfig.get().mode.name == "RUN":
                raise
            # One job's fault leaves the others of a multirun alone.
            failed.append(report(error))

    try:
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config_name)(task)()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        end(error)
    sys.exit(failed[0] if failed else 0)


def to_plain(composed: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain containers, with the choice made in each group.

    Raises:
        ConfigError: a mandatory value is missing or a reference leads nowhere.
    """
    try:
        plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error)
        raise ConfigError(f"{key}: not set; give it as {key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {first_line(error)}; correct the value") from error
    choices = HydraConfig.get().runtime.choices
    plain["choices"] = {k: v for k, v in sorted(choices.items()) if v and "/" not in k}
    return dict(plain)


def send_log_to_terminal() -> None:
    """Print messages of level INFO and above to standard output."""
    handler = TerminalHandler()
    handler.setLevel(logging.INFO)
    log.handlers = [handler]
    log.setLevel(logging.DEBUG)
    log.propagate = False


class TerminalHandler(logging.Handler):
    """Prints messages; those that warn say so."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(prefix + record.getMessage(), flush=True)


def end(error: Exception) -> NoReturn:
    """Report an error and exit with its code."""
    sys.exit(report(error))


def report(error: Exception) -> int:
    """Print one line for an error, keep the traceback in a file, and return the exit code."""
    known = translate(error)
    if known is not None:
        print(f"error: {known}", file=sys.stderr, flush=True)
        return known.exit_code
    trace = Path("attnseg-error.log")
    trace.write_text("".join(traceback.format_exception(error)))
    print(
        f"error: {type(error).__name__}: {first_line(error)}; this is a bug of ours, please report "
        f"it with {trace.resolve()}",
        file=sys.stderr,
        flush=True,
    )
    return 1


def translate(error: BaseException) -> AttnsegError | None:
    """Return what an exception means to the person at the terminal; `None` for a bug of ours."""
    if isinstance(error, AttnsegError):
        return error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return ConfigError(f"{group}: no {name!r}; {schema.nearest(name, error.options or [])}")
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(explain_override(error))
    return None


def explain_override(error: Exception) -> str:
    """Return one line for what Hydra says of the command line or of a configuration file."""
    text = str(error)
    if match := re.search(r"Could not override '([^'@]+)", text):
        key = match[1]
        parent, _, name = key.rpartition(".")
        return f"{key}: no such key; {schema.nearest(name, known_names(parent))}"
    if match := re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text):
        parent, _, name = match[2].rpartition(".")
        return f"{match[2]}: no such key; {schema.nearest(name, known_names(parent))}"
    if match := re.search(r"Error parsing override '(.*?)'", text):
        return f"{match[1]}: not KEY=VALUE; quote values with spaces, commas or braces"
    return f"configuration: {' '.join(text.split())[:300]}; see --help"


def known_names(parent: str) -> Sequence[str]:
    """Return the keys under `parent` in the default configuration; the top level's groups, too."""
    with hydra.initialize_config_module("attnseg.configs", version_base="1.3"):
        node = OmegaConf.select(hydra.compose("train"), parent) if parent else hydra.compose("train")
    groups = [path.name for path in GROUPS.iterdir() if path.is_dir() and path.name[0] != "_"]
    names = [str(key) for key in node] if OmegaConf.is_dict(node) else []
    return names if parent else sorted({*names, *groups} - {"hydra"})


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
