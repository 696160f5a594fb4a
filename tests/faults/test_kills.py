"""A run that is killed and stopped again and again ends as if it had not been.

`pytest -m slow tests/faults/test_kills.py` does it eighty times.
"""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from attnseg import files
from attnseg.runs import checkpoints
from attnseg.training.module import SegmentationModule
from tests.faults.runs import assert_same_end, attempt, run_of

SAVES = "trainer.save_minutes=0.003"  # of the disturbed ones; the others save after epochs only
EVENTS = [  # what a signal may come before
    (SegmentationModule, "on_train_batch_start"),
    (SegmentationModule, "on_before_zero_grad"),
    (SegmentationModule, "on_after_backward"),
    (SegmentationModule, "on_train_batch_end"),
    (SegmentationModule, "validation_step"),
    (SegmentationModule, "on_validation_epoch_end"),
    (SegmentationModule, "on_train_epoch_end"),
    (checkpoints.AtomicCheckpointIO, "save_checkpoint"),
    (checkpoints._Hashed, "write"),
    (checkpoints, "write_text"),
    (files.os, "fsync"),
    (files.os, "replace"),
]


def send_at(event: tuple[object, str], count: int, number: int, told: Path):
    """Return a fault: a signal to itself at the `count`th time of an event, which it tells."""

    def arrange() -> None:
        passed = 0
        owner, method = event
        original = getattr(owner, method)

        def counted(*arguments, **named):
            nonlocal passed
            passed += 1
            if passed == count:
                told.touch()
                os.kill(os.getpid(), number)
            return original(*arguments, **named)

        setattr(owner, method, counted)

    return arrange


def disturb(folder: Path, options: tuple[str, ...], kills: int, stops: int, seed: int) -> Counter:
    """Run until it is done, with so many signals at random events; count where they came."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation([signal.SIGKILL] * kills + [signal.SIGTERM] * stops)
    events = [EVENTS[at] for _ in numbers for at in rng.permutation(len(EVENTS))][: len(numbers)]
    places: Counter = Counter()
    told = folder / "told"
    for number, event in zip(numbers, events, strict=True):
        told.unlink(missing_ok=True)
        often = event[0] is not SegmentationModule or "batch" in event[1] or "back" in event[1]
        count = int(rng.integers(1, 9 if event[0] is files.os else 5 if often else 3))
        code = attempt(folder, *options, SAVES, fault=send_at(event, count, int(number), told))
        assert told.exists(), f"the run was over after {places.total()} signals"
        places[signal.Signals(number).name, event[1]] += 1
        # Before training begins there is nothing to stop with a checkpoint.
        early = code == -signal.SIGTERM and event[0] is files.os
        assert early or code == (143 if number == signal.SIGTERM else -number), event
    assert attempt(folder, *options) == 0
    return places


def check(tmp_path: Path, options: tuple[str, ...], kills: int, stops: int, seed: int) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    assert attempt(first, *options) == 0
    other.mkdir()
    places = disturb(other, options, kills, stops, seed)
    print(dict(places))
    assert_same_end(run_of(first), run_of(other))
    run = run_of(other)
    assert not [path for path in run.rglob(".*")]  # nothing half-written is left
    assert not (run / "lock").exists()
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "done"
    statuses = Counter(attempt["status"] for attempt in facts["attempts"])
    assert statuses["done"] == 1
    assert statuses["stopped"] >= stops // 2


def test_killed_at_a_few_moments(tmp_path):
    check(tmp_path, ("trainer.max_epochs=5",), kills=4, stops=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "seed"),
    [
        ((), 1),
        (("trainer.ema_decay=0.9", "trainer.accumulate=3", "trainer.num_workers=2",
          "dataset.foreground=0.5"), 2),
    ],
    ids=["plain", "everything"],
)  # fmt: skip
def test_killed_at_many_moments(tmp_path, options, seed):
    """Ten minutes on two cores."""
    length = ("trainer.max_epochs=60", "trainer.limit_batches=6")
    check(tmp_path, (*length, *options), kills=30, stops=10, seed=seed)
