"""Shared by all tests: one thread each, a tiny phantom, and commands called in this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from attnseg import cli
from attnseg.data.phantom import make_uw_madison

torch.set_num_threads(1)


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
    """Call `train.py` with arguments, in an empty folder; return exit code and output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.train()
        out, err = capfd.readouterr()
        return Answer(int(ended.value.code or 0), out, err)

    return run
