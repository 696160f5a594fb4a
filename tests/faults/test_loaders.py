"""Loader processes that raise, die or hang: one line that names the case, and no waiting."""

import os
import signal
import time

import pytest

from attnseg.data.loader_processes import explain_loader_error
from attnseg.data.slices import SliceDataset
from tests.faults.runs import attempt
from tests.limits import HANG

WORKERS = ("trainer.num_workers=2", "trainer.max_epochs=2")


def at_slice(index: int, what):
    """Return a fault: at a slice of the training set, in whatever process reads it."""

    def arrange() -> None:
        read = SliceDataset.__getitem__

        def faulty(self, key):
            if key == (1, index) and self.augment is not None:
                what()
            return read(self, key)

        SliceDataset.__getitem__ = faulty

    return arrange


def unpicklable():
    class Local(Exception):
        def __init__(self, first, second):
            super().__init__(f"{first} and {second}", lambda: None)

    raise Local("this", "that")


def bad_value():
    raise ValueError("the file has 3 bytes\nof which two are bad")


FAULTS = {
    "raises": (bad_value, 3, "cannot be loaded (ValueError: the file has 3 bytes)"),
    "raises what cannot be sent": (unpicklable, 3, "cannot be loaded (Local: "),
    "is killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), 5, "Killed while reading case"),
    "exits": (lambda: os._exit(1), 5, "exited unexpectedly with exit code 1"),
    "segfaults": (lambda: os.kill(os.getpid(), signal.SIGSEGV), 5, "Segmentation fault"),
    "hangs": (lambda: time.sleep(2 * HANG), 5, "loader_timeout: no batch came in time; loader"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_loader_process(tmp_path, fault):
    what, code, message = FAULTS[fault]
    soon = ("trainer.loader_timeout=2",) if fault == "hangs" else ()
    assert attempt(tmp_path, *WORKERS, *soon, fault=at_slice(20, what)) == code
    output = (tmp_path / "output").read_text()
    line = output[output.rindex("error: ") :]
    assert line.count("\n") == 1
    assert message in line
    assert "while reading case" in line or "hang at case" in line or "error: case" in line
    assert "slice 4" in line
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "cause", ["is killed by signal: Killed. ", "exited unexpectedly with exit code 1."]
)
def test_how_a_process_died_while_a_batch_was_waited_for(cause):
    error = RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly")
    error.__cause__ = RuntimeError(f"DataLoader worker (pid 7) {cause}")
    how = cause.rstrip(". ")
    assert f"a loader process {how} while reading nothing;" in str(explain_loader_error(error, []))
    error.__cause__ = None  # the signal came at another moment
    assert "a loader process exited unexpectedly while" in str(explain_loader_error(error, []))


def test_what_was_mended_goes_on(tmp_path):
    fault = at_slice(20, FAULTS["is killed"][0])
    assert attempt(tmp_path, *WORKERS, fault=fault) == 5
    assert attempt(tmp_path, *WORKERS) == 0
    assert "Going on from" in (tmp_path / "output").read_text()
