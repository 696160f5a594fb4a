"""Commands: Hydra composes the configuration, the engine does the work, errors end in one line.

Kept free of torch, so that help and mistyped commands are answered at once.
"""

import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from attnseg.engine import schema
from attnseg.errors import AttnsegError, ConfigError, ResourceError

CONFIGS = "pkg://attnseg.configs"
GROUPS = Path(__file__).parent / "configs"
FLAGS = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--info",
)  # fmt: skip
Plain = dict[str, Any]
log = logging.getLogger("attnseg")


def main() -> NoReturn:
    """Run `attnseg COMMAND ...`."""
    commands = {"train": train, "phantom": phantom, "benchmark": benchmark}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("attnseg COMMAND KEY=VALUE ...\n")
        for command, function in commands.items():
            print(f"  {command:10} {(function.__doc__ or '').splitlines()[0]}")
        print("\nattnseg COMMAND --help lists every choice.")
        sys.exit(0)
    if name not in commands:
        sys.exit(report(ConfigError(f"{name}: no such command; {schema.nearest(name, commands)}")))
    del sys.argv[1]
    commands[name]()


def train() -> NoReturn:
    """Train, validate and test one model, or several with -m."""

    def job(plain: Plain, text: str) -> None:
        config = schema.check(plain)
        from attnseg.engine.train import train  # imports torch

        train(config, text)

    run("train", job)


def phantom() -> NoReturn:
    """Make a dataset's phantom, at dataset.root if that is given."""

    def job(plain: Plain, text: str) -> None:
        config = schema.check(plain)
        from attnseg.engine.data import make_phantom

        print(make_phantom(config))

    run("train", job)


def benchmark() -> NoReturn:
    """Measure what a model with an attention costs: parameters, MACs, time and memory."""

    def job(plain: Plain, text: str) -> None:
        config = schema.check_types(schema.Benchmark, plain)
        from attnseg.engine.benchmark import benchmark

        benchmark(config)

    run("benchmark", job)


def run(config_name: str, job: Callable[[Plain, str], None]) -> NoReturn:
    """Compose the configuration from `sys.argv`, run `job` for it (each one with -m), and exit."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through: we report them ourselves
    send_log_to_terminal()
    codes: list[int] = []

    def task(composed: DictConfig) -> None:
        # One job's fault leaves the others of a multirun alone.
        try:
            hydra_config = HydraConfig.get()
            if hydra_config.mode == RunMode.MULTIRUN:
                log.info("== Job %s: %s", hydra_config.job.num, hydra_config.job.override_dirname)
            job(to_plain(composed), OmegaConf.to_yaml(composed, resolve=True))
            codes.append(0)
        except Exception as error:
            codes.append(report(error))

    for flag in {"-m", "--multirun"} & set(sys.argv):  # argparse wants it before any KEY=VALUE
        sys.argv.remove(flag)
        sys.argv.insert(1, flag)
    try:
        check_flags(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config_name)(task)()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        codes.append(report(compose_error(error, config_name)))
    if len(codes) > 1:
        log.info("%d of %d jobs done", codes.count(0), len(codes))
    sys.exit(max(codes, default=0))


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that Hydra does not know, in one line.

    Raises:
        ConfigError: names the flag and the nearest known one.
    """
    for argument in arguments:
        flag = argument.split("=")[0]
        if flag.startswith("--") and flag not in FLAGS:
            raise ConfigError(f"{flag}: no such flag; {schema.nearest(flag, FLAGS)}")


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


def report(error: Exception) -> int:
    """Print one line for an error, keep a bug's traceback in a file, and return the exit code."""
    known = translate(error)
    if known is not None:
        log.debug("Failed", exc_info=error)
        print(f"error: {known}", file=sys.stderr, flush=True)
        return known.exit_code
    handle, trace = tempfile.mkstemp(prefix="attnseg-error-", suffix=".log")
    with os.fdopen(handle, "w") as file:
        file.write("".join(traceback.format_exception(error)))
    print(
        f"error: {type(error).__name__}: {first_line(error)}; this is a bug of ours, please report "
        f"it with {trace}",
        file=sys.stderr,
        flush=True,
    )
    return 1


def translate(error: Exception) -> AttnsegError | None:
    """Return what an exception means to the person at the terminal; `None` for a bug of ours."""
    if isinstance(error, AttnsegError):
        return error
    if isinstance(error, OSError) and error.errno and error.strerror:
        what = error.filename or "disk"
        return ResourceError(f"{what}: {error.strerror}; check the path, permissions and space")
    return None


def compose_error(error: Exception, config_name: str) -> Exception:
    """Turn what Hydra says of the command line or of a configuration file into one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return ConfigError(f"{group}: no {name!r}; {schema.nearest(name, error.options or [])}")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override}: not KEY=VALUE; quote values with spaces, commas or brackets"
        )
    if match := re.search(r"Could not override '([^'@]+)", text):
        key = match[1]
        parent, _, name = key.rpartition(".")
        return ConfigError(
            f"{key}: no such key; {schema.nearest(name, known_names(config_name, parent))}"
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(f"configuration: {text[:300]}; see --help")
    if isinstance(error, ValueError) and "group override" in text:
        # A group set to null or to a number.
        wrong = [a for a in sys.argv[1:] if re.fullmatch(r"\w*=(null|[\d.]*)", a)]
        group = wrong[0].partition("=")[0] if wrong else "configuration"
        return ConfigError(f"{' '.join(wrong)}: not a choice; {choices_of(group)}")
    return error


def choices_of(group: str) -> str:
    """Return advice that lists the names of a group."""
    names = sorted(path.stem for path in (GROUPS / group).glob("*.yaml"))
    return f"choose one of {', '.join(names)}" if group and names else "see --help"


def known_names(config_name: str, parent: str) -> Sequence[str]:
    """Return the keys under `parent` in the default configuration; at the top, the groups too."""
    with hydra.initialize_config_module("attnseg.configs", version_base="1.3"):
        node: Any = hydra.compose(config_name)
    if parent:
        node = OmegaConf.select(node, parent)
    names = [str(key) for key in node] if OmegaConf.is_dict(node) else []
    groups = [path.name for path in GROUPS.iterdir() if any(path.glob("*.yaml"))]
    return names if parent else sorted({*names, *groups})


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
