"""Shared by all tests: one thread each, a tiny phantom, and commands called in this process."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from hypothesis import settings

from attnseg import cli
from attnseg.phantoms.uw_madison import make_uw_madison
from tests.tiers import SMOKE, starts_something

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in commands that tests start
# The same examples every time; `pytest --hypothesis-profile=search` looks for new ones.
settings.register_profile("search")
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts something `system`, or `smoke` if tests/tiers.py lists it."""
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


@pytest.fixture
def commons() -> Iterator[Path]:
    """A folder that every user may write to, outside of pytest's own, which is private."""
    if os.geteuid() != 0:
        pytest.skip("only root may become other users")
    folder = Path(tempfile.mkdtemp(prefix="commons-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


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
