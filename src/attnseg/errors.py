"""Faults that a user can mend, by the exit code that they end a command with."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


class AttnsegError(Exception):
    """A fault that the person at the terminal can mend.

    The message is one line: `<file or key>: <what is wrong>; <what to do>`.
    """

    exit_code = 1


class ConfigError(AttnsegError):
    """A configuration that cannot be run."""

    exit_code = 2


def require(key: str, extra: str, *packages: str) -> None:
    """Refuse to go on without optional packages.

    Args:
        key: what the message begins with.
        extra: of this package, which installs them.
        packages: names to import.

    Raises:
        ConfigError: names the first that is not installed.
    """
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"{key}: {name} is not installed; pip install 'attnseg[{extra}]'")


class DataError(AttnsegError):
    """A dataset that is missing, broken or contradicts itself.

    Args:
        problems: one line each, all that was found; the message is the first and how many more.
    """

    exit_code = 3

    def __init__(self, *problems: str) -> None:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems = problems

    def __reduce__(self) -> tuple[type[Self], tuple[str, ...]]:
        """Return how to make it again: loader processes send it to the main one."""
        return type(self), self.problems


def listed(error: DataError, key: str, advice: str) -> DataError:
    """Print all problems of an error; return one line that counts them.

    Args:
        error: with one problem or several; the former is returned as it is.
        key: what the line begins with.
        advice: what to do.
    """
    if len(error.problems) == 1:
        return error
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    return DataError(f"{key}: {len(error.problems)} problems, listed above; {advice}")


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message; its name if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class Problems:
    """What is wrong with a dataset, gathered to be said at once.

    `with problems.gathered(): ...` keeps a `DataError` and goes on after the block.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the problems of a `DataError` raised within."""
        try:
            yield
        except DataError as error:
            self.found.extend(error.problems)

    def stop(self) -> None:
        """Raise all that was found, if anything was.

        Raises:
            DataError: with every problem.
        """
        if self.found:
            raise DataError(*self.found)


class CheckpointError(AttnsegError):
    """A checkpoint or published weight file that does not fit."""

    exit_code = 4


class ResourceError(AttnsegError):
    """A machine that has too little of something: disk, memory, permissions."""

    exit_code = 5


class InUseError(ResourceError):
    """A run folder that another process works on."""
