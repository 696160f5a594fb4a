"""Several processes train as one with the whole batch does."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.faults.runs import assert_same_end, attempt, attempts, run_of, send_at
from tests.limits import HANG

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32", "trainer.num_workers=0")
# SGD: AdamW takes a full step even where the gradient is nothing but rounding. With another seed,
# rounding may decide a pixel whose logits are almost equal, and then the Dice differs.
OPTIONS = (
    "trainer.max_epochs=3", "trainer.accumulate=2", "dataset.foreground=0.5", "optimizer=sgd",
    "trainer.early_stopping=2", "seed=1",
)  # fmt: skip


def weights(run, name="last.ckpt"):
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]


ROOT = Path(__file__).parents[2]
FSDP = ("trainer=fsdp", *TWO[1:])
KINDS = {"ddp": (TWO, ("trainer.ema_decay=0.5",)), "fsdp": (FSDP, ())}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path, kind):
    trainer, more = KINDS[kind]
    one, two = tmp_path / "one", tmp_path / "two"
    # 7 slices: neither the training nor the validation slices divide by it.
    assert attempt(one, *OPTIONS, *more, "dataset.batch_size=14") == 0
    assert attempts(2, two, *trainer, *OPTIONS, *more, "dataset.batch_size=7") == [0, 0]
    first, other = run_of(one), run_of(two)
    assert first.name == other.name  # the same run
    expected, found = weights(first), weights(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)
    a, b = (
        pd.read_csv(r / "history.csv").drop(columns=["seconds", "waiting"]) for r in (first, other)
    )
    pd.testing.assert_frame_equal(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_by_a_signal_to_one_process_and_repeated(tmp_path, kind):
    first, other = tmp_path / "first", tmp_path / "other"
    options = (*KINDS[kind][0], "trainer.max_epochs=2", "dataset.batch_size=2")
    assert attempts(2, first, *options) == [0, 0]
    stops = [send_at("step", 5, signal.SIGTERM), lambda: None]
    assert attempts(2, other, *options, faults=stops) == [143, 143]
    position = torch.load(run_of(other) / "checkpoints/last.ckpt", weights_only=True)["position"]
    assert position == (0, 5)
    stops = [lambda: None, send_at("validation", 1, signal.SIGTERM)]
    assert attempts(2, other, *options, faults=stops) == [143, 143]
    assert attempts(2, other, *options) == [0, 0]
    assert_same_end(run_of(first), run_of(other))


def test_a_lost_process_is_said_in_one_line(tmp_path):
    options = (*TWO, "trainer.max_epochs=2", "dataset.batch_size=2")
    faults = [lambda: None, send_at("step", 5, signal.SIGKILL)]
    assert attempts(2, tmp_path, *options, faults=faults) == [5, -signal.SIGKILL]
    line = "error: trainer.devices: another process of this run has ended"
    assert line in (tmp_path / "output").read_text()
    assert json.loads((run_of(tmp_path) / "run.json").read_text())["status"] == "failed"


def test_another_number_of_processes_than_configured(tmp_path):
    assert attempts(2, tmp_path, "trainer.max_epochs=1") == [2, 2]
    message = "trainer.devices: 1, but 2 processes were started; set trainer.devices=2"
    assert message in (tmp_path / "output").read_text()


def test_batches_too_large_for_all_processes(tmp_path):
    assert attempts(2, tmp_path, *TWO, "dataset.batch_size=25")[0] == 2
    message = "dataset.batch_size: 25 in each of 2 processes is more than the 48 training slices"
    assert message in (tmp_path / "output").read_text()


def test_torchrun(tmp_path):
    """Two interpreters, which take seconds to start."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    place = [f"paths.data={tmp_path}/data", f"paths.outputs={tmp_path}/outputs"]
    done = subprocess.run(
        [*torchrun, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", ROOT / "train.py",
         "experiment=smoke", *TWO, "trainer.max_epochs=1", *place],
        capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Epoch 1/1: train") == 1
    assert done.stdout.count("Done in") == 1
    facts = json.loads((run_of(tmp_path) / "run.json").read_text())
    assert [one["status"] for one in facts["attempts"]] == ["done"]
