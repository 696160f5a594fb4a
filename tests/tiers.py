"""Finds the tests that start processes, trainings or whole commands, whatever their marks say.

The code of a test and of its fixtures is followed through the helpers of this folder to whatever
starts something, so no mark can be forgotten.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

# What the default tier has of whole commands: a training, a resume, a prediction, typed commands.
SMOKE = (
    "tests/cli/test_train.py::test_run_folder_is_complete",
    "tests/cli/test_resume.py::test_killed_once_and_resumed_to_the_same_end",
    "tests/prediction/test_runs.py::test_the_masks_are_those_that_evaluation_scores",
    "tests/cli/test_readme.py::",  # composes what the documents tell people to type
    "tests/gpu/test_simulation.py::",  # in a process of its own, where PyTorch finds another device
)
STARTERS = {
    "subprocess",
    "multiprocessing",
    "attnseg.processes.fork",
    "attnseg.training.fit",
    "attnseg.training.train",
}
CLI = ("attnseg.cli", "attnseg.commands")
COMMANDS = set(
    "main demo train prepare preview phantom status evaluate predict metrics_diff explain compare "
    "export capsule verify publish search convert benchmark check probe doctor new view".split()
)


def starts_something(item: pytest.Function) -> bool:
    """Return whether a test or one of its fixtures reaches a process, a training or a command."""
    definitions = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(each.func for found in definitions for each in found)]
    return any(map(reaches, functions))


def reaches(value: object, seen: set[int] | None = None) -> bool:
    """Return whether a function or class of the tests leads to something that starts something."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, type):
        return any(reaches(member, seen) for member in vars(value).values())
    function = inspect.unwrap(value) if callable(value) else value
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType) or not _is_ours(function):
        return False
    names = set(_names(function.__code__))
    for used in (function.__globals__[name] for name in names if name in function.__globals__):
        home = used.__name__ if isinstance(used, ModuleType) else getattr(used, "__module__", "")
        if home in STARTERS or (str(home).startswith(CLI) and names & COMMANDS):
            return True
        if reaches(used, seen):
            return True
    return False


def _is_ours(function: FunctionType) -> bool:
    return Path(function.__code__.co_filename).is_relative_to(Path(__file__).parent)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
