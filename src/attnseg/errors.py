"""Errors that users can fix; each ends a command with an exit code of its own."""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self


class AttnsegError(Exception):
    """An error that the user can fix.

    The message is one line: `<file or key>: <what is wrong>; <what to do>`.
    """

    exit_code = 1


class ConfigError(AttnsegError):
    """A configuration that is invalid or impossible to run."""

    exit_code = 2


class DataError(AttnsegError):
    """A dataset that is missing, broken or contradicts itself.

    Args:
        problems: one line each; the message is the first line and the number of others.
    """

    exit_code = 3

    def __init__(self, *problems: str) -> None:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems = problems

    def __reduce__(self) -> tuple[type[Self], tuple[str, ...]]:
        """Support pickling, by which loader processes send the error to the main process."""
        return type(self), self.problems


def listed(error: DataError, key: str, advice: str) -> DataError:
    """Print an error's problems and return an error that counts them, if there are several."""
    if len(error.problems) == 1:
        return error
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    return DataError(f"{key}: {len(error.problems)} problems, listed above; {advice}")


def join_names(names: Sequence[str], most: int = 5) -> str:
    """Return names separated by commas; beyond `most` of them, the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the exception's name if it is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class Problems:
    """Collects the problems of a dataset, so that all of them are reported at once.

    `with problems.gathered(): ...` keeps the problems of a `DataError`, and the program goes on.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def gathered(self, place: object = None) -> Iterator[None]:
        """Keep the problems of a `DataError` raised within; if `place` is given, of any error."""
        try:
            yield
        except DataError as error:
            self.found.extend(error.problems)
        except Exception as error:
            if place is None or isinstance(error, AttnsegError):
                raise
            reason = f"{type(error).__name__}: {first_line(error)[:200]}"
            self.found.append(f"{place}: cannot be read ({reason}); restore it or remove it")

    def stop(self) -> None:
        """Raise a `DataError` with every problem if there are any."""
        if self.found:
            raise DataError(*self.found)


class CheckpointError(AttnsegError):
    """A checkpoint or weight file that is damaged, unsafe or of another model."""

    exit_code = 4


class ResourceError(AttnsegError):
    """A machine that lacks disk space, memory or permissions."""

    exit_code = 5


class InUseError(ResourceError):
    """A folder that another process is working on."""


def require(key: str, extra: str, *packages: str, otherwise: str = "") -> None:
    """Refuse to go on without optional packages: a `ConfigError` names the first that is missing.

    Args:
        key: beginning of the message.
        extra: optional dependencies of this package that install the missing one.
        packages: names to import.
        otherwise: advice for those who do not want to install it.
    """
    for name in packages:
        if importlib.util.find_spec(name) is None:
            advice = f"pip install 'attnseg[{extra}]'" + (f" or {otherwise}" if otherwise else "")
            raise ConfigError(f"{key}: {name.replace('_', '-')} is not installed; {advice}")
