"""Errors of Hydra, the system and this package, each as one line on the terminal."""

import contextlib
import errno
import logging
import os
import re
import resource
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from attnseg.cli.literal_text import suggest_quotes
from attnseg.config.composition import known_names
from attnseg.config.errors import nearest
from attnseg.config.folder import list_choices
from attnseg.errors import AttnsegError, ConfigError, ResourceError, first_line
from attnseg.files import explain_write_error
from attnseg.memory import lacks_memory
from attnseg.plugins import locate_failure

# As the system words it, and PyTorch where a batch's memory cannot be passed on.
TOO_MANY_FILES = re.compile("Too many open files|received 0 items of ancdata")
THREAD_REFUSED = "can't start new thread"  # as Python says it
BROKEN_LIBRARY = re.compile("cannot open shared object|undefined symbol")  # as the loader says
COMPILER = "torch._inductor."  # the module of its errors
log = logging.getLogger("attnseg")


def report_error(error: Exception) -> int:
    """Print one line for an error, keep a bug's traceback in a file, and return the exit code."""
    if isinstance(error, BrokenPipeError) and not can_print():
        return 128 + signal.SIGPIPE
    known = translate_error(error)
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
    message = f"{type(error).__name__}: {first_line(error)}"
    if failure := locate_failure(error):
        plugin, place = failure
        message = f"plugin {plugin}: {message} ({place}); correct the plugin, see {trace}"
    else:
        message += f"; this is a bug of ours, please report it with {trace}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


def can_print() -> bool:
    """Return whether standard output has a reader; if not, as after `| head`, silence it."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # It is no file, as in a notebook.
        return True
    watched = select.poll()
    watched.register(output, 0)
    if any(event & select.POLLERR for _, event in watched.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        return False
    return True


def translate_error(error: Exception) -> AttnsegError | None:
    """Return the error for the person at the terminal, or `None` for a bug of ours."""
    if isinstance(error, AttnsegError):
        return error
    if lacks_memory(error):
        return explain_lack_of_memory(error)
    if is_broken_library(error):
        library = getattr(error, "name", None) or "a library"
        return ConfigError(
            f"{library}: cannot be imported ({first_line(error)[:200]}); run `attnseg doctor` to "
            "see what is missing and what to do"
        )
    if TOO_MANY_FILES.search(str(error)):
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return ResourceError(
            f"open files: {most} at once are allowed, and more are needed; lower "
            "trainer.num_workers, or allow more with `ulimit -n 4096` before the command"
        )
    if THREAD_REFUSED in str(error) or is_refused_process(error):
        return ResourceError(
            f"processes: no other process or thread may be started ({first_line(error)[:200]}); "
            "lower trainer.num_workers, end other commands, or allow more with `ulimit -u`"
        )
    if isinstance(error, OSError) and error.errno and error.strerror:
        return explain_write_error(str(error.filename or "disk"), error)
    if type(error).__module__.startswith(COMPILER):
        return ConfigError(
            "trainer.compile: PyTorch cannot compile this network here "
            f"({first_line(error)[:200]}); use trainer.compile=null and attn.backend=auto"
        )
    if type(error).__module__.startswith("submitit."):
        text = " ".join(str(error).split())[:200].rstrip(".")
        return ResourceError(f"hydra/launcher: {text}; see its log, and run the command again")
    return None


def is_refused_process(error: Exception) -> bool:
    """Return whether the system started no process; a file that is locked has the same number."""
    return (
        isinstance(error, OSError)
        and error.errno == errno.EAGAIN
        and error.filename is None
        and "lock" not in str(error)
    )


def explain_lack_of_memory(error: BaseException) -> ResourceError:
    """Return the error for the person at the terminal."""
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    more = ", or allow more with `ulimit -v`" if limited else ""
    reason = first_line(error)[:200]
    if isinstance(error, ImportError):
        return ResourceError(f"memory: too little to load a library ({reason}); free some{more}")
    return ResourceError(f"memory: {reason}; lower dataset.batch_size or dataset.image_size{more}")


def is_broken_library(error: Exception) -> bool:
    """Return whether an error comes from importing another package than this one."""
    if isinstance(error, ImportError):
        return not str(error.name).startswith("attnseg")
    return isinstance(error, OSError) and bool(BROKEN_LIBRARY.search(str(error)))


def translate_hydra_error(
    error: Exception, config_name: str, arguments: Sequence[str]
) -> Exception:
    """Turn an error that Hydra raised, for a command line or a file, into one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        known = [each for each in error.options or list_choices(group) if each[:1] != "_"]
        return ConfigError(f"{group}: no {name!r}; {nearest(name, known)}")
    if isinstance(error, OverrideParseException):
        typed = suggest_quotes(error.override)
        return ConfigError(
            f"{error.override}: not KEY=VALUE; quote values with spaces, commas or brackets"
            f"{f', as in {typed}' if typed else ''}"
        )
    if match := re.search(r"Could not override '([^'@]+)", text):
        key = match[1]
        parent, _, name = key.rpartition(".")
        known = known_names(config_name, parent, existing_choices(arguments))
        others = {*known} - {name}  # It may be a group, but one of another command.
        return ConfigError(f"{key}: no such key; {nearest(name, others)}")
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
    wrong = [a for a in arguments if re.fullmatch(r"\w*=\[?(null|[\d.]*)\]?", a)]
    if wrong and ("group override" in text or isinstance(error, TypeError)):
        choices = ", ".join(list_choices(wrong[0].partition("=")[0]))
        advice = f"choose one of {choices}" if choices else "see --help"
        return ConfigError(f"{' '.join(wrong)}: not a choice; {advice}")
    if raised_by(error) in ("hydra", "omegaconf"):  # Strange command lines fail anywhere in them.
        return ConfigError(f"command line: {text[:300]}; see --help")
    return error


def raised_by(error: Exception) -> str:
    """Return the package whose code raised an exception; empty if it was not raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    name = frames[-1].f_globals.get("__name__", "") if frames else ""
    return str(name).partition(".")[0]


def existing_choices(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that make a choice which exists: each brings keys of its own."""
    matches = (re.fullmatch(r"(\w+)=(\w+)", argument) for argument in arguments)
    return [match[0] for match in matches if match and match[2] in list_choices(match[1])]


def send_log_to_terminal() -> None:
    """Print messages of level INFO and above to standard output."""
    handler = TerminalHandler()
    handler.setLevel(logging.INFO)
    log.handlers = [handler]
    log.setLevel(logging.DEBUG)
    log.propagate = False


class TerminalHandler(logging.Handler):
    """Prints messages, and `warning:` before those that warn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(prefix + record.getMessage(), flush=True)
