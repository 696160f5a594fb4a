"""Cost of being able to stop a run anywhere and resume it to the same end, to the bit.

Of a training step: the time in all that the training loop does for it between the network's passes,
and what deterministic algorithms take longer. Of a checkpoint: keeping it whole, with its SHA-256,
against Lightning's own way.
"""

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch

from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import alternate, median_and_range
from attnseg.benchmark.workload import Workload
from attnseg.preparation.datasets import load_dataset, open_reader
from attnseg.processes.launch import ProcessGroup
from attnseg.processes.signals import Stopping
from attnseg.runs.checkpoints import AtomicCheckpointIO, read_checkpoint
from attnseg.runs.run_folder import RunFolder
from attnseg.training.callbacks.checkpoints import LastCheckpoint
from attnseg.training.callbacks.history import History
from attnseg.training.fit import fit
from attnseg.training.module import SegmentationModule
from scripts.benchmarks.overhead import Clock, set_up_with_clock, shorten

COLUMNS = {
    "label": "model and data",
    "what": "what",
    "ms": "ms",
    "share": "of a training step, %",
    "mib": "checkpoint, MiB",
    "ratio": "ours / Lightning's own",
}
# Every step: draw from seed and step, look for a loss that is no number, ask whether to stop or to
# save, note how long the batch took to come.
CHECKS: tuple[tuple[type, str], ...] = (
    (SegmentationModule, "on_train_batch_start"),
    (SegmentationModule, "check_loss"),
    (LastCheckpoint, "on_train_batch_start"),
    (History, "on_train_batch_start"),
    (History, "on_train_batch_end"),
)


def measure_safety(config: Benchmark, device: torch.device, precisions: Sequence[str]) -> list[Row]:
    """Train with the checks timed; then keep the checkpoint in both ways."""
    config = shorten(config, device, save_minutes=None)  # saving is timed by itself
    reader = open_reader(config)
    data, clock = load_dataset(config, reader), Clock()
    checks: list[float] = []  # seconds per step, of each epoch

    with tempfile.TemporaryDirectory() as place, timed(CHECKS) as calls:
        folder = RunFolder(place)

        def end_epoch(rows: object) -> None:
            checks.append(sum(calls) / len(clock.steps))
            calls.clear()
            clock.end_epoch()

        setup = set_up_with_clock(config, reader, data, clock)
        fit(setup, folder, ProcessGroup(1), Stopping(), on_epoch=end_epoch)
        kept = folder.last_checkpoint
        size, saves = kept.stat().st_size, save_times(kept, config.repeats)
    step = median(taken for epoch in clock.epochs[1:] for taken in epoch)
    exact, free = deterministic_times(config, device)
    label = f"{config.choices['model']}, {config.dataset_name}"
    rows: list[Row] = [
        {
            "what": "a step's checks",
            "ms": median_and_range(1e3 * taken for taken in checks[1:]),
            "share": median_and_range(100 * taken / step for taken in checks[1:]),
        },
        {
            "what": "deterministic algorithms",
            "ms": median_and_range(1e3 * (a - b) for a, b in zip(exact, free, strict=True)),
            "share": median_and_range(100 * (a / b - 1) for a, b in zip(exact, free, strict=True)),
        },
    ]
    for what, found in saves.items():
        row: Row = {
            "what": what,
            "ms": median_and_range(1e3 * taken for taken in found),
            "mib": size / 2**20,
        }
        rows.append(row)
    theirs, ours = saves.values()
    rows[-1]["ratio"] = median_and_range(a / b for a, b in zip(ours, theirs, strict=True))
    return [{"label": label, **row} for row in rows]


@contextlib.contextmanager
def timed(methods: Sequence[tuple[type, str]]) -> Iterator[list[float]]:
    """Note the seconds of every call of some methods while the block runs."""
    calls: list[float] = []
    originals = [getattr(kind, name) for kind, name in methods]

    def wrap(method: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(method)
        def run(*args: object, **options: object) -> object:
            started = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                calls.append(time.perf_counter() - started)

        return run

    for (kind, name), method in zip(methods, originals, strict=True):
        setattr(kind, name, wrap(method))
    try:
        yield calls
    finally:
        for (kind, name), method in zip(methods, originals, strict=True):
            setattr(kind, name, method)


def save_times(path: Path, repeats: int) -> dict[str, list[float]]:
    """Return the seconds that a checkpoint takes to keep, Lightning's own way and ours.

    Each begins when the disk is idle: else it would wait for what the other one has left to write.
    """

    def idle_disk() -> dict[str, float]:
        os.sync()
        return {}

    kept = read_checkpoint(path)
    ours = AtomicCheckpointIO()
    ways = {
        "Lightning's own save": super(AtomicCheckpointIO, ours).save_checkpoint,
        "our save": ours.save_checkpoint,
    }
    works = {
        name: partial(save, kept, path.with_name(f"{number}.ckpt"))
        for number, (name, save) in enumerate(ways.items())
    }
    samples = alternate(works, repeats, idle_disk)
    return {name: [sample.seconds for sample in found] for name, found in samples.items()}


def deterministic_times(config: Benchmark, device: torch.device) -> tuple[list[float], list[float]]:
    """Return the seconds of a step with deterministic algorithms, and with any."""
    load = Workload(config, device)

    def step(deterministic: bool) -> None:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        load.step()

    before = torch.are_deterministic_algorithms_enabled()
    try:
        samples = alternate({kind: partial(step, kind) for kind in (True, False)}, config.repeats)
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)
    exact, free = ([sample.seconds for sample in samples[kind]] for kind in (True, False))
    return exact, free
