"""The largest batch: the arithmetic, and that the measured batch does fit."""

import math
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from attnseg import memory
from attnseg.config.components import build_components
from attnseg.data.labels import Labels
from attnseg.errors import ResourceError
from attnseg.memory import free_memory
from attnseg.preparation.datasets import open_reader
from attnseg.training import auto_batch
from attnseg.training.auto_batch import batch_that_fits, find_largest_batch
from tests.faults.runs import attempt, configured, run_of

IMAGE = (1, 64, 64)


@pytest.mark.parametrize(
    ("tried", "peak", "room", "batch"),
    [
        (1, 100, 1000, 91),  # 10 a slice: 100 + 90 x 10
        (9, 180, 1000, 91),
        (3, 120, 100, 1),
        (1, 100, 99, 1),
        (1, 100, 109.9, 1),
    ],
)
def test_arithmetic(tried, peak, room, batch):
    assert batch_that_fits(tried, peak, 10, room) == batch


def test_free_memory_is_what_the_machine_has():
    pages = resource.getpagesize()
    assert pages < free_memory() < 1 << 50


def test_what_is_found_follows_the_memory_there_is(tmp_path, monkeypatch):
    config = configured(tmp_path)
    reader = open_reader(config)
    parts = build_components(config, reader)
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    found = []
    for megabytes in (200, 400):
        monkeypatch.setattr(auto_batch, "free_memory", lambda: megabytes << 20)  # noqa: B023
        found.append(
            find_largest_batch(config, parts, IMAGE, Labels(("a", "b", "c"), overlapping=True))
        )
    assert 1 < found[0] < found[1] < 4 * found[0]
    assert (400 << 20) / found[1] > 4 * math.prod(IMAGE)  # A slice takes more than its pixels.
    assert all(torch.equal(before[n], v) for n, v in parts.model.state_dict().items())
    monkeypatch.setattr(auto_batch, "free_memory", lambda: 1 << 20)
    with pytest.raises(ResourceError, match="one slice needs"):
        find_largest_batch(config, parts, IMAGE, Labels(("a", "b", "c"), overlapping=True))


@pytest.mark.parametrize(
    ("fitting", "batch"), [({1: 50, 2: 70}, 2), ({1: 50, 2: 81}, 1), ({1: 50}, 1)]
)
def test_where_three_slices_do_not_fit_one_or_two_may(tmp_path, monkeypatch, fitting, batch):
    def measure_peak(step, batch):
        if batch not in fitting:
            raise ResourceError("too large")
        return fitting[batch]

    monkeypatch.setattr(auto_batch, "free_memory", lambda: 100)
    monkeypatch.setattr(auto_batch, "_cpu_peak", measure_peak)
    labels = Labels(("a", "b", "c"), overlapping=True)
    assert find_largest_batch(configured(tmp_path), None, IMAGE, labels) == batch


def test_a_run_notes_the_batch_it_found(tmp_path):
    options = ("trainer.auto_batch=true", "trainer.precision=auto", "trainer.max_epochs=1")
    assert attempt(tmp_path, *options) == 0
    output = (tmp_path / "output").read_text()
    assert "trainer.auto_batch: " in output
    assert "trainer.precision=" in output
    text = (run_of(tmp_path) / "config.yaml").read_text()
    assert "precision: auto" not in text
    assert f"batch_size: {configured(tmp_path).dataset.batch_size}\n" not in text


def test_with_one_device_only(tmp_path):
    from attnseg.errors import ConfigError

    with pytest.raises(ConfigError, match=r"trainer\.auto_batch: for one device"):
        configured(tmp_path, "trainer=ddp", "trainer.auto_batch=true")


def test_free_memory_is_within_the_limit_of_the_container(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    assert free_memory() == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 2_000_000


def test_recomputed_activations_and_averaged_weights_count(tmp_path, monkeypatch):
    monkeypatch.setattr(auto_batch, "free_memory", lambda: 150 << 20)
    found = []
    for option in ("gradient_checkpointing=false", "gradient_checkpointing=true", "ema_decay=0.9"):
        config = configured(tmp_path, f"trainer.{option}")
        parts = build_components(config, open_reader(config))
        labels = Labels(("a", "b", "c"), overlapping=True)
        found.append(find_largest_batch(config, parts, IMAGE, labels))
    plain, recomputed, averaged = found
    assert recomputed > 1.2 * plain
    assert averaged < plain


def test_activations_are_seen_behind_the_optimizer(tmp_path, monkeypatch):
    """With few slices, gradients and moments of the weights are the peak."""
    peaks = {1: 1000, 3: 1000, 9: 1000, 27: 2350}  # 50 a slice, from 1000
    monkeypatch.setattr(auto_batch, "free_memory", lambda: 12500)
    monkeypatch.setattr(auto_batch, "_cpu_peak", lambda step, batch: peaks[batch])
    found = find_largest_batch(configured(tmp_path), None, IMAGE, Labels(("a",), overlapping=True))
    assert found == 9 + (10000 - 1000) // 75  # 75 a slice between the last two: on the safe side


ON_A_SIMULATED_GPU = """
import os, sys
from attnseg.gpu.fake_device import load_fake_device
load_fake_device()
from types import SimpleNamespace
from torch._subclasses.fake_tensor import FakeTensorMode
from attnseg.config.components import build_components
from attnseg.config.composition import compose, to_raw
from attnseg.config.training import parse_config
from attnseg.gpu import simulated_step
from attnseg.preparation.datasets import open_reader
from attnseg.training import auto_batch

config = parse_config(to_raw(compose("train", sys.argv[1:])))
reader = open_reader(config)
components = build_components(config, reader)
auto_batch.copy = SimpleNamespace(deepcopy=lambda model: model)  # Fake tensors have no copies.
with FakeTensorMode(allow_non_fake_inputs=True):
    auto_batch._train_on_zeros(components, config.trainer, (1, 64, 64), reader.labels, 2)
print({p.grad.device.type for p in components.model.parameters()}, flush=True)
os._exit(0)  # The thread of autograd for the device cannot be joined.
"""


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, for a device of shapes")
def test_a_step_on_a_gpu_has_the_loss_there(tmp_path):
    """With weights of classes, which a loss holds as a tensor."""
    options = [
        "experiment=smoke", "trainer=gpu", "trainer.precision=32", "loss.class_weights=[1,2,3]",
        "trainer.ema_decay=0.9", "trainer.gradient_checkpointing=true",
        f"paths.data={tmp_path}", f"paths.outputs={tmp_path}",
    ]  # fmt: skip
    command = [sys.executable, "-c", ON_A_SIMULATED_GPU, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "{'cuda'}\n", done.stderr
