"""A run that is stopped anywhere goes on from that very step, and ends as if it had not been."""

import json
import signal

import pytest
import torch

from tests.faults.runs import assert_same_end, attempt, run_of, send_at

PLAIN = ("trainer.max_epochs=3",)
EVERYTHING = (
    "trainer.max_epochs=4", "trainer.ema_decay=0.9", "trainer.accumulate=4",
    "trainer.num_workers=2", "optimizer=sgd", "dataset.foreground=0.5",
    "trainer.early_stopping=1", "model=transunet", "model.dropout=0.1",
)  # fmt: skip
STOPS = [  # where, which time, by what, exit code
    ("step", 5, "SIGTERM", 143),
    ("validation", 2, "SIGHUP", 143),
    ("save", 1, "SIGINT", 130),
    ("step", 5, "SIGINT", 130),
    ("scores", 1, "SIGUSR1", 143),
]


WORKERS = (*PLAIN, "trainer.num_workers=4")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(PLAIN, marks=pytest.mark.slow),  # SIGKILL and SIGTERM: `test_kills.py`.
        EVERYTHING,
        pytest.param(WORKERS, marks=pytest.mark.slow),
    ],
    ids=["plain", "everything", "four workers"],
)
def test_stopped_at_every_kind_of_place(tmp_path, options):
    first, other = tmp_path / "first", tmp_path / "other"
    assert attempt(first, *options) == 0
    positions = []
    for place, count, name, code in STOPS:
        number = getattr(signal, name)
        assert attempt(other, *options, fault=send_at(place, count, number)) == code, place
        run = run_of(other)
        assert json.loads((run / "run.json").read_text())["status"] == "stopped"
        positions.append(torch.load(run / "checkpoints/last.ckpt", weights_only=True)["position"])
    # The batch that the signal came in, or the end of its accumulation, is the last one done; one
    # in validation finds all batches done.
    late = 8 if options is EVERYTHING else 5
    assert positions == [(0, late), (0, 12), (1, 0), (1, late), (2, 0)]
    assert attempt(other, *options) == 0
    assert_same_end(run_of(first), run_of(other))
