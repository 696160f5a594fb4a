import os
import pickle
from pathlib import Path

import pytest
import torch

from attnseg.files import (
    file_digest,
    is_whole,
    remove_unfinished,
    replacing,
    write_text,
)
from attnseg.runs.checkpoints import AtomicCheckpointIO


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_carry_their_digest(tmp_path):
    path = tmp_path / "a" / "last.ckpt"
    for value in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"value": torch.tensor(value)}, path)
        assert torch.load(path, weights_only=True)["value"] == value
        assert path.with_name("last.ckpt.sha256").read_text() == f"{file_digest(path)}  last.ckpt\n"


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="local object"):
        AtomicCheckpointIO().save_checkpoint({"value": lambda: 0}, path)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "last.ckpt.sha256"}


def checkpoint(path, number):
    AtomicCheckpointIO().save_checkpoint({"number": number}, path)


@pytest.mark.parametrize("moment", ["before the file is there", "after the file is there"])
def test_a_save_cut_off_at_any_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, moment):
    path = tmp_path / "last.ckpt"
    checkpoint(path, 1)
    replace = os.replace

    def cut(source, target):
        if Path(target) == path and moment.startswith("before"):
            raise KeyboardInterrupt
        replace(source, target)
        if Path(target) == path:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoint(path, 2)
    monkeypatch.undo()
    assert is_whole(path)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["number"] == (1 if moment.startswith("before") else 2)
    checkpoint(path, 3)
    assert path.with_name("last.ckpt.sha256").read_text() == f"{file_digest(path)}  last.ckpt\n"


def test_what_a_killed_save_leaves_is_swept(tmp_path):
    checkpoint(tmp_path / "last.ckpt", 1)
    (tmp_path / ".last.ckpt.abc123").write_bytes(b"half")
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    path = tmp_path / "evil.ckpt"
    torch.save({"state": Evil()}, path)
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().load_checkpoint(path)
