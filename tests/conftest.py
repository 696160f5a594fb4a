"""Shared by all tests: one thread each, a tiny phantom, and commands called in this process."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from hypothesis import settings

from attnseg import cli
from attnseg.phantoms.uw_madison import make_uw_madison
from tests.tiers import starts_something

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in commands that tests start
# The same examples every time; `pytest --hypothesis-profile=search` looks for new ones.
settings.register_profile("search")
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# What the default tier has of whole commands: a training, a resume, a prediction, typed commands.
SMOKE = (
    "tests/cli/test_train.py::test_run_folder_is_complete",
    "tests/cli/test_resume.py::test_killed_and_repeated_until_done",
    "tests/predict/test_runs.py::test_the_masks_are_those_that_evaluation_scores",
    "tests/cli/test_readme.py::",  # composes what the documents tell people to type
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts processes, trainings or commands: `smoke` if listed here, else `system`."""
    for item in items:
        if item.nodeid.startswith(SMOKE):
            item.add_marker("smoke")
        elif isinstance(item, pytest.Function) and starts_something(item):
            item.add_marker("system")


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """Root of a tiny phantom in the UW-Madison layout; read only."""
    root = tmp_path_factory.mktemp("phantom") / "uw"
    make_uw_madison(root, "tiny")
    return root


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, tmp_path, capfd) -> Callable[..., Answer]:
    """Call a command with arguments, in an empty folder; return exit code and output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, command: Callable[[], NoReturn] = cli.train) -> Answer:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            command()
        out, err = capfd.readouterr()
        return Answer(int(ended.value.code or 0), out, err)

    return run
