"""A save that is killed, or that the disk fails, at any one of its file operations."""

import errno
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from attnseg.errors import ResourceError
from attnseg.files import check_room, is_whole, remove_unfinished
from attnseg.runs.checkpoints import AtomicCheckpointIO, read_checkpoint

OPERATIONS = ("open", "fdopen", "fsync", "chmod", "replace", "unlink", "close")
KILLED, FULL = "killed", "full disk"


def checkpoint(path, number):
    state = {"w": torch.full((3000,), float(number)), "b": torch.arange(5)}
    facts = {"epoch": number, "state_dict": state, "callbacks": {}}
    AtomicCheckpointIO().save_checkpoint(facts, path)


class Faulty:
    """Counts file operations, and lets one of them fail."""

    def __init__(self, fault, at):
        self.fault, self.at, self.count = fault, at, 0

    def step(self):
        self.count += 1
        if self.count != self.at:
            return
        if self.fault == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self):
        for name in OPERATIONS:
            setattr(os, name, self.around(getattr(os, name)))

    def around(self, function):
        def operation(*arguments, **keywords):
            self.step()
            result = function(*arguments, **keywords)
            return File(result, self) if function.__name__ == "fdopen" else result

        return operation


class File:
    """A file that is written in halves, with a chance to fail before, between and after."""

    def __init__(self, file, faulty):
        self.file, self.faulty = file, faulty

    def write(self, data):
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.faulty.step()
            self.file.write(part)
            self.file.flush()
        return len(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def save_with_a_fault(path, fault, at):
    faulty = Faulty(fault, at)
    faulty.install()
    try:
        checkpoint(path, 2)
    except ResourceError:
        os._exit(3)
    os._exit(0 if faulty.count < at else 4)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["TMPDIR here", "TMPDIR elsewhere"])
@pytest.mark.parametrize("fault", [KILLED, FULL])
def test_a_fault_at_every_file_operation_leaves_a_whole_checkpoint(
    tmp_path, monkeypatch, fault, elsewhere
):
    if elsewhere:
        monkeypatch.setenv("TMPDIR", "/dev/shm")
    path = tmp_path / "last.ckpt"
    context = multiprocessing.get_context("fork")
    ends = []
    while not ends or ends[-1] != 0:
        checkpoint(path, 1)
        child = context.Process(target=save_with_a_fault, args=(path, fault, len(ends) + 1))
        child.start()
        child.join()
        ends.append(child.exitcode)
        assert is_whole(path), f"after operation {len(ends)}"
        assert read_checkpoint(path)["epoch"] in (1, 2)
        remove_unfinished(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "last.ckpt.sha256"}
    *faults, end = ends
    assert end == 0
    assert len(faults) > 20
    if fault == KILLED:
        assert set(faults) == {-signal.SIGKILL}
    else:  # closing a folder and the like may fail without harm
        assert faults.count(3) >= len(faults) - 2, faults
    print(f"{fault}, {len(faults)} operations: {len(faults)} times a whole checkpoint")


def test_a_thousand_flipped_bits_are_found(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint(path, 1)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, 8 * len(whole), 1000):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        assert not is_whole(path), at
    path.write_bytes(whole)
    assert is_whole(path)


def test_too_little_room_is_found_before_training(tmp_path):
    check_room(tmp_path, 1000, "checkpoints")
    with pytest.raises(ResourceError, match="are needed for checkpoints"):
        check_room(tmp_path, 10**18, "checkpoints")
