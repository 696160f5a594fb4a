"""Speed at which slices arrive: decoding, the store, other file formats, loaders, a training step.

All figures of a run are taken in alternation, since the speed of the machine drifts.
"""

import importlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import median_and_range
from attnseg.config.components import Components, build_components
from attnseg.config.training import Config
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.reader import CaseRef, Reader
from attnseg.data.store import StoredCase, read_slices
from attnseg.preparation.datasets import load_dataset, open_reader
from attnseg.training.setup import make_loaders

log = logging.getLogger("attnseg.benchmark")  # the one whose messages are printed

ROUNDS = 7
SLICES = 200  # read at random per round
BATCHES = 40  # of a loader per round
STEPS = 8  # of training
COLUMNS = {
    "label": "data",
    "what": "what",
    "us": "us per slice",
    "speedup": "times decoding",
    "rate": "samples/s",
    "step_ms": "training step, ms",
    "waiting": "of it waiting for data, %",
}

Read = Callable[[int, int], Any]  # case and slice


def measure_loading(config: Config, device: torch.device, precisions: Sequence[str]) -> list[Row]:
    """Measure a dataset's loading, each way to read a slice in alternation with the others."""
    reader = open_reader(config)
    parts = build_components(config, reader)
    data = load_dataset(config, reader)
    times = read_times(reader, data.train)
    decoding = statistics.median(times["decoding"])
    size = "x".join(map(str, data.train[0].shape[1:]))
    label = f"{config.dataset_name}, {size}"
    rows: list[Row] = [
        {
            "label": label,
            "what": name,
            "us": median_and_range(1e6 * taken for taken in found),
            "speedup": decoding / statistics.median(found),
        }
        for name, found in times.items()
    ]
    datamodule = make_loaders(config, data, parts)
    workers = f"loader, {config.trainer.num_workers} processes"
    rows.append(
        {"label": label, "what": workers, "rate": median_and_range(loader_rates(datamodule))}
    )
    steps, waits = waiting(datamodule, parts, reader)
    row: Row = {
        "label": label,
        "what": f"training {config.choices['model']}",
        "step_ms": median_and_range(1e3 * taken for taken in steps),
        "waiting": 100 * sum(waits) / sum(steps),
    }
    return [*rows, row]


def read_times(reader: Reader, cases: Sequence[StoredCase]) -> dict[str, list[float]]:
    """Return the seconds that one random slice and its mask take, by way of reading."""
    ref = CaseRef(cases[0].patient, cases[0].case, tuple(map(Path, cases[0].files)))
    per_slice = len(ref.files) == cases[0].shape[0]  # else a slice needs its whole volume
    decoded = cases[0].shape[0] if per_slice else 1
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(cases), size=SLICES)
    keys = [(int(c), int(rng.integers(cases[c].shape[0]))) for c in chosen]
    with tempfile.TemporaryDirectory() as folder:
        ways = {"store": _read_store(cases), **_formats(cases, Path(folder))}
        times: dict[str, list[float]] = {name: [] for name in ("decoding", *ways)}
        for _ in range(ROUNDS):
            started = time.perf_counter()
            reader.read(ref)
            times["decoding"].append((time.perf_counter() - started) / decoded)
            for name, read in ways.items():
                started = time.perf_counter()
                for case, index in keys:
                    read(case, index)
                times[name].append((time.perf_counter() - started) / SLICES)
    return times


def _read_store(cases: Sequence[StoredCase]) -> Read:
    """Return how training reads a slice, less the scaling of its intensities."""

    def read(number: int, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
        case = cases[number]
        image = read_slices(case.folder / "image.npy", case.digest, np.array([index]))
        return image[0], case.mask_slice(index)

    return read


def _formats(cases: Sequence[StoredCase], folder: Path) -> dict[str, Read]:
    """Write the cases in other formats, those that are installed; return how to read each."""
    makers: dict[str, tuple[str, Callable[[Any, NDArray[Any], str], Any]]] = {
        "h5py": (
            "h5py",
            lambda lib, array, place: lib.File(place, "w").create_dataset(
                "array", data=array, chunks=(1, *array.shape[1:])
            ),
        ),
        "h5py, lzf": (
            "h5py",
            lambda lib, array, place: lib.File(place, "w").create_dataset(
                "array", data=array, chunks=(1, *array.shape[1:]), compression="lzf"
            ),
        ),
        "zarr, zstd": (
            "zarr",
            lambda lib, array, place: lib.create_array(
                place, data=array, chunks=(1, *array.shape[1:])
            ),
        ),
        "blosc2, zstd": (
            "blosc2",
            lambda lib, array, place: lib.asarray(
                array, urlpath=f"{place}.b2nd", chunks=(1, *array.shape[1:])
            ),
        ),
    }
    ways: dict[str, Read] = {}
    for name, (library, make) in makers.items():
        try:
            lib = importlib.import_module(library)
        except ImportError:
            log.info("%s is not installed and not measured", library)
            continue
        made = [
            [
                make(lib, np.array(array), str(folder / f"{name}-{number}-{kind}"))
                for kind, array in (("image", case.image), ("mask", case.mask))
            ]
            for number, case in enumerate(cases)
        ]
        ways[name] = partial(_from, made)
    return ways


def _from(made: list[list[Any]], case: int, index: int) -> tuple[Any, Any]:
    image, mask = made[case]
    return image[index], mask[index]


def loader_rates(datamodule: SliceDataModule) -> list[float]:
    """Return augmented training samples per second, of several rounds."""
    loader = datamodule.train_dataloader()
    rates = []
    for number in range(ROUNDS):
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        batches = iter(loader)
        first = next(batches)  # the workers have started
        started, count = time.perf_counter(), 0
        for count, _ in enumerate(batches, 1):
            if count == BATCHES:
                break
        rates.append(count * len(first["image"]) / (time.perf_counter() - started))
    return rates


def waiting(
    datamodule: SliceDataModule, parts: Components, reader: Reader
) -> tuple[list[float], list[float]]:
    """Return the seconds of training steps, and those of each spent on waiting for the batch."""
    model, loss = parts.model.train(), parts.loss
    optimizer = parts.optimizer(params=model.parameters())
    loader = datamodule.train_dataloader()
    waits, steps = [], []
    batches = iter(loader)
    mark = time.perf_counter()
    for number in range(STEPS + 2):
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        arrived = time.perf_counter()
        target = reader.labels.target(batch["mask"])
        loss(model(batch["image"]), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        ended = time.perf_counter()
        if number >= 2:  # the first ones warm up
            waits.append(arrived - mark)
            steps.append(ended - mark)
        mark = time.perf_counter()
    return steps, waits
