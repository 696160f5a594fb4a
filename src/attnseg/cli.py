"""Commands: Hydra composes the configuration, the engine does the work, errors end in one line.

Kept free of torch, so that help and mistyped commands are answered at once.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from attnseg import sweeps
from attnseg.benchmark import suites
from attnseg.config import composition, schema  # noqa: F401 - the former tells Hydra of defaults
from attnseg.config.folder import configs_folder
from attnseg.errors import AttnsegError, ConfigError, ResourceError, first_line
from attnseg.help import help_text, names
from attnseg.processes.fork import run_in_child
from attnseg.sweeps import Claimed

FLAGS = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--info",
    "-h", "-c", "-p", "-r", "-m", "-sc", "-cp", "-cn", "-cd", "-i",
)  # fmt: skip
NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory")  # torch's words
Plain = dict[str, Any]
Job = Callable[[Plain, Claimed], None]
log = logging.getLogger("attnseg")


def main() -> NoReturn:
    """Run `attnseg COMMAND ...`."""
    commands = {
        "train": train,
        "prepare": prepare,
        "preview": preview,
        "phantom": phantom,
        "status": status,
        "evaluate": evaluate,
        "predict": predict,
        "metrics_diff": metrics_diff,
        "explain": explain,
        "compare": compare,
        "export": export,
        "capsule": capsule,
        "verify": verify,
        "publish": publish,
        "search": search,
        "benchmark": benchmark,
    }
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

    def job(plain: Plain, claimed: Claimed) -> None:
        config = schema.check(plain)
        from attnseg.training.train import train  # imports torch

        train(config, claimed)

    run("train", job)


def status() -> NoReturn:
    """List all runs: done, training, cut off, stopped, failed."""
    run("train", calling("runs.status:print_status", lambda plain: Path(plain["paths"]["outputs"])))


def evaluate() -> NoReturn:
    """Score a finished run, or a folder of masks, under any metric profiles."""
    run("evaluate", calling("evaluation.evaluate:evaluate", schema.check_evaluate))


def predict() -> NoReturn:
    """Segment NIfTI files, DICOM series, pictures or scan folders with finished runs."""
    run("predict", calling("commands.predict:predict", schema.check_predict))


def metrics_diff() -> NoReturn:
    """Show how the same predictions of a run score under several metric profiles."""
    sys.argv = [re.sub("^profiles=", "profile=", word) for word in sys.argv]
    run("evaluate", calling("evaluation.compare_profiles:metrics_diff", schema.check_evaluate))


def explain() -> NoReturn:
    """Draw where a token of finished runs attends, layer by layer."""
    run("explain", calling("explain.explain:explain_runs", schema.check_explain))


def export() -> NoReturn:
    """Export a finished run as ONNX, torch.export and safetensors."""
    run("export", calling("export.export:export", schema.check_export))


def capsule() -> NoReturn:
    """Pack a finished run as one file that can be verified and predicts without torch."""
    run("capsule", calling("export.capsule:pack_run", partial(schema.check_types, schema.Capsule)))


def verify() -> NoReturn:
    """Check a capsule and replay its golden input, offline and without torch."""
    sys.argv[1:] = [re.sub(r"^([^-=][^=]*\.zip)$", r"capsule=\1", word) for word in sys.argv[1:]]

    def job(plain: Plain, claimed: Claimed) -> None:
        config = schema.check_types(schema.Verify, plain)
        from attnseg.commands.predict import check_runtime
        from attnseg.predict.capsule import verify
        from attnseg.predict.hub import fetch

        check_runtime()
        verify(fetch(config.capsule), config.threads)

    run("verify", job)


def publish() -> NoReturn:
    """Publish a capsule in a folder or on the Hugging Face Hub."""

    def job(plain: Plain, claimed: Claimed) -> None:
        config = schema.check_types(schema.Publish, plain)
        from attnseg.predict.hub import publish

        publish(config.capsule, config.to)

    run("publish", job)


def compare() -> NoReturn:
    """Compare the variants among finished runs, with intervals over patients, beside cost."""

    def job(plain: Plain, claimed: Claimed) -> None:
        config = schema.check_types(schema.Compare, plain)
        from attnseg.study.compare import compare_runs

        compare_runs(**config.model_dump(exclude={"choices"}))

    run("compare", job)


def prepare() -> NoReturn:
    """Decode, check and describe a dataset, and list all that is wrong with it."""
    run("train", calling("preparation.prepare:prepare_dataset", schema.check))


def preview() -> NoReturn:
    """Draw what the network sees of a dataset, augmented."""
    run("train", calling("preparation.preview:draw_contact_sheet", schema.check, print))


def phantom() -> NoReturn:
    """Make a dataset's phantom, at dataset.root if that is given."""
    if not any(word.startswith("dataset.root=") for word in sys.argv):
        sys.argv.append("dataset.root=null")
    run("train", calling("preparation.datasets:make_phantom", schema.check, print))


def search() -> NoReturn:
    """Search options for the best validation score, by many trials."""

    def job(plain: Plain, claimed: Claimed) -> None:
        options = schema.check_search(plain.pop("search"))
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError("search: optuna is not installed; pip install 'attnseg[search]'")
        from attnseg.search.search import search  # imports torch

        words = list(HydraConfig.get().overrides.task)
        if code := search(options, partial(compose_trial, words), words, report):
            raise SystemExit(code)

    run("search", job)


def compose_trial(words: Sequence[str], more: Sequence[str]) -> schema.Config:
    """Return the configuration of a trial; its test set stays sealed.

    Args:
        words: overrides of the command line.
        more: the trial's own.

    Raises:
        ConfigError: a key or choice does not exist, or a value is not allowed.
    """
    composed = compose("search", [*words, "trainer.open_test=false", *more])
    with open_dict(composed):
        del composed["search"]
    return schema.check(to_plain(composed))


def compose(config_name: str, words: Sequence[str]) -> DictConfig:
    """Compose another configuration within a command, as if it had been given these words.

    Raises:
        ConfigError: a key or choice does not exist.
    """
    try:
        composed = hydra.compose(config_name, list(words), return_hydra_config=True)
    except Exception as error:
        raise compose_error(error, config_name) from error
    HydraConfig.instance().set_config(composed)
    with open_dict(composed):
        del composed["hydra"]
    return composed


def call_again(job: Job, config_name: str, words: Sequence[str]) -> int:
    """Run a job with other words; return the exit code."""
    try:
        call(job, compose(config_name, words), lambda folder: None)
    except Exception as error:
        return report(error)
    return 0


def benchmark() -> NoReturn:
    """Measure cost and speed, in suites: training steps, latency, memory, variants."""

    def job(plain: Plain, claimed: Claimed) -> None:
        config = schema.check_benchmark(plain)
        words = list(HydraConfig.get().overrides.task)
        divided = suites.split_suite(config.suite, words)
        for part in divided:
            if code := run_in_child(partial(call_again, job, "benchmark", part)):
                raise SystemExit(code)
        if config.suite == "all":
            suites.join_tables(config)
        elif not divided:
            suites.run_suite(config)

    run("benchmark", job)


def calling(
    target: str, check: Callable[[Plain], Any], show: Callable[[Any], object] = lambda result: None
) -> Job:
    """Return a job: check the configuration, import the target, call it.

    Args:
        target: `MODULE:FUNCTION` below the package, imported only when the configuration is sound.
        check: makes of the plain configuration what the function takes.
        show: is given what the function returns.
    """

    def job(plain: Plain, claimed: Claimed) -> None:
        config = check(plain)
        module, function = target.split(":")
        show(getattr(importlib.import_module(f"attnseg.{module}"), function)(config))

    return job


def run(config_name: str, job: Job) -> NoReturn:
    """Compose the configuration from `sys.argv`, run `job` for it (each one with -m), and exit."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through: we report them ourselves
    send_log_to_terminal()
    codes: list[int] = []

    def task(composed: DictConfig) -> None:
        if not log.handlers:  # a launcher's process
            send_log_to_terminal()
        perform = partial(call, job, composed)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            importlib.import_module("attnseg.training.train")  # once, not in every child
            code = sweeps.run_job(perform, report)
            if sweeps.Sweep.current is None:  # else the ledger tells, of other processes' jobs too
                codes.append(code)
            return
        try:
            perform(lambda folder: None)
        except Exception as error:
            codes.append(report(error))

    # Several profiles or loggers serve one job; Hydra has brackets for that.
    sys.argv = [
        re.sub(r"^(profile|logger|formats)=([\w,]+)$", r"\1=[\2]", word) for word in sys.argv
    ]
    for flag in {"-m", "--multirun"} & set(sys.argv):  # argparse wants it before any KEY=VALUE
        sys.argv.remove(flag)
        sys.argv.insert(1, flag)
    try:
        check_flags(sys.argv[1:])
        if {"-h", "--help"} & set(sys.argv):
            print(
                help_text(config_name, [w for w in sys.argv[1:] if not w.startswith("-")]),
                flush=True,
            )
            sys.exit(0)
        hydra.main(version_base="1.3", config_path=str(configs_folder()), config_name=config_name)(
            task
        )()
    except KeyboardInterrupt:
        codes = [130]
    except SystemExit as error:
        codes = [error.code if isinstance(error.code, int) else 1]
    except Exception as error:
        codes.append(report(compose_error(error, config_name)))
    if max(codes, default=0) > 128:
        name = signal.Signals(max(codes) - 128).name
        print(f"error: stopped by {name}; the same command goes on", file=sys.stderr, flush=True)
    try:
        codes.append(sweeps.close())
    except Exception as error:
        codes.append(report(error))
    sys.exit(max(codes))


def call(job: Job, composed: DictConfig, claimed: Claimed) -> None:
    """Run a job with what Hydra composed."""
    job(to_plain(composed), claimed)


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that Hydra does not know, in one line.

    Raises:
        ConfigError: names the flag and the nearest known one.
    """
    for argument in arguments:
        flag = argument.split("=")[0]
        if flag.startswith("-") and flag not in FLAGS:
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
    plain["choices"] = {
        name: choice
        for name, choice in sorted(choices.items())
        if isinstance(choice, str) and "/" not in name
    }
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
    if isinstance(error, BrokenPipeError) and not can_print():
        return 128 + signal.SIGPIPE
    known = translate(error)
    if known is not None:
        log.debug("Failed", exc_info=error)
        print(f"error: {known}", file=sys.stderr, flush=True)
        return known.exit_code
    trace = "its traceback, for which there is no room on the disk"
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="attnseg-error-", suffix=".log")
        with os.fdopen(handle, "w") as file:
            file.write("".join(traceback.format_exception(error)))
        trace = path
    print(
        f"error: {type(error).__name__}: {first_line(error)}; this is a bug of ours, please report "
        f"it with {trace}",
        file=sys.stderr,
        flush=True,
    )
    return 1


def can_print() -> bool:
    """Return whether anybody reads standard output; if not, as after `| head`, silence it."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # not a file at all
        return True
    watched = select.poll()
    watched.register(output, 0)
    if any(event & select.POLLERR for _, event in watched.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        return False
    return True


def translate(error: Exception) -> AttnsegError | None:
    """Return what an exception means to the person at the terminal; `None` for a bug of ours."""
    if isinstance(error, AttnsegError):
        return error
    if isinstance(error, OSError) and error.errno and error.strerror:
        what = error.filename or "disk"
        return ResourceError(f"{what}: {error.strerror}; check the path, permissions and space")
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return ResourceError(
            f"memory: {first_line(error)[:200]}; lower dataset.batch_size or dataset.image_size"
        )
    if type(error).__module__.startswith("submitit."):
        text = " ".join(str(error).split())[:200].rstrip(".")
        return ResourceError(f"hydra/launcher: {text}; see its log, and run the command again")
    return None


def compose_error(error: Exception, config_name: str) -> Exception:
    """Turn what Hydra says of the command line or of a configuration file into one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = [each for each in error.options or names(group) if not each.startswith("_")]
        return ConfigError(f"{group}: no {name!r}; {schema.nearest(name, options)}")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override}: not KEY=VALUE; quote values with spaces, commas or brackets"
        )
    if match := re.search(r"Could not override '([^'@]+)", text):
        key = match[1]
        parent, _, name = key.rpartition(".")
        known = {*known_names(config_name, parent)} - {name}  # a group, of another command
        return ConfigError(f"{key}: no such key; {schema.nearest(name, known)}")
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        place = f"{mark.name}, line {mark.line + 1}"
        return ConfigError(f"{place}: {error.problem}; correct the file")
    if isinstance(error, UnicodeDecodeError):
        return ConfigError(f"configuration: a file that is not UTF-8 ({text}); save it as UTF-8")
    if isinstance(error, RecursionError):
        return ConfigError("configuration: nested too deeply, or within itself; see --help")
    if isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError):
        return ConfigError(f"configuration: {text[:300]}; see --help")
    # A group set to null or to a number.
    wrong = [a for a in sys.argv[1:] if re.fullmatch(r"\w*=\[?(null|[\d.]*)\]?", a)]
    if wrong and ("group override" in text or isinstance(error, TypeError)):
        group = wrong[0].partition("=")[0]
        return ConfigError(f"{' '.join(wrong)}: not a choice; {choices_of(group)}")
    if raised_by(error) in ("hydra", "omegaconf"):  # what they make of a strange command line
        return ConfigError(f"command line: {text[:300]}; see --help")
    return error


def raised_by(error: Exception) -> str:
    """Return the package whose code raised an exception; empty if it was not raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return str(name).partition(".")[0]


def choices_of(group: str) -> str:
    """Return advice that lists the names of a group."""
    known = names(group) if group else []
    return f"choose one of {', '.join(known)}" if known else "see --help"


def known_names(config_name: str, parent: str) -> Sequence[str]:
    """Return the keys under `parent` in the default configuration; at the top, the groups too."""
    begun = GlobalHydra.instance().is_initialized()  # while a search composes its trials
    with (
        contextlib.nullcontext()
        if begun
        else hydra.initialize_config_dir(str(configs_folder()), version_base="1.3")
    ):
        node: Any
        try:
            node = hydra.compose(config_name, chosen())
        except HydraException:  # a choice may be what is wrong
            node = hydra.compose(config_name)
    if parent:
        node = OmegaConf.select(node, parent)
    known = [str(key) for key in node] if OmegaConf.is_dict(node) else []
    groups = [path.name for path in configs_folder().iterdir() if names(path.name)]
    return known if parent else sorted({*known, *groups})


def chosen() -> list[str]:
    """Return the choices of the command line that exist: each brings keys of its own."""
    words = (re.fullmatch(r"(\w+)=(\w+)", word) for word in sys.argv[1:])
    return [w[0] for w in words if w and (configs_folder() / w[1] / f"{w[2]}.yaml").is_file()]
