import pytest
import torch

from attnseg.engine.files import AtomicCheckpointIO, file_digest, replacing, write_text


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
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"value": lambda: 0}, path)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "last.ckpt.sha256"}
