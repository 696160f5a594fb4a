"""How fast slices come: decoding against the store, other file formats, loaders, a training step.

All figures of a run are taken in alternation, since the machine's speed drifts.
"""

import importlib
import json
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
from rich.console import Console
from rich.table import Table

from attnseg.data.datamodule import SliceDataModule
from attnseg.data.reader import CaseRef, Reader
from attnseg.data.slices import network_target
from attnseg.data.store import StoredCase
from attnseg.engine.data import load, open_reader
from attnseg.engine.parts import Parts, build_parts
from attnseg.engine.schema import Config
from attnseg.engine.train import make_datamodule
from attnseg.files import write_text

log = logging.getLogger(__name__)

ROUNDS = 7
SLICES = 200  # read at random per round
BATCHES = 40  # of a loader per round
STEPS = 8  # of training

Figures = dict[str, Any]
Read = Callable[[int, int], Any]  # case and slice


def measure(config: Config) -> Figures:
    """Measure a dataset's loading; print a table and write `loading.json`.

    Returns:
        Microseconds per slice of each way to read, samples per second of the loader, the share of a
        training step spent waiting, and the machine's speed of copying.
    """
    reader = open_reader(config)
    parts = build_parts(config, reader)
    data = load(config, reader)
    figures: Figures = {"copy_gb_per_s": copy_speed(), "slice": list(data.train[0].shape[1:])}
    figures["read_us"] = read_times(reader, data.train)
    datamodule = make_datamodule(config, data, parts)
    figures["workers"] = config.trainer.num_workers
    figures["samples_per_s"] = loader_speed(datamodule)
    figures["step"] = waiting(datamodule, parts, reader)
    show(figures)
    path = Path(config.paths.outputs, "benchmark", f"loading-{config.dataset_name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(figures, indent=1) + "\n")
    log.info("Written: %s", path)
    return figures


def copy_speed() -> float:
    """Return how fast memory is copied, GB/s: the limit of any loading."""
    source = np.ones(1 << 27, np.uint8)
    return round(len(source) / 1e9 / seconds(lambda: source.copy()), 2)


def seconds(work: Callable[[], object]) -> float:
    """Return the median time of some work."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def read_times(reader: Reader, cases: Sequence[StoredCase]) -> Figures:
    """Return the median microseconds that one random slice and its mask take, by way of reading."""
    ref = CaseRef(cases[0].patient, cases[0].case, tuple(map(Path, cases[0].files)))
    per_slice = len(ref.files) == cases[0].shape[0]  # else a slice needs its whole volume
    decoded = cases[0].shape[0] if per_slice else 1
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(cases), size=SLICES)
    keys = [(int(c), int(rng.integers(cases[c].shape[0]))) for c in chosen]
    with tempfile.TemporaryDirectory() as folder:
        ways = {"store (numpy memmap)": _memmap(cases), **_formats(cases, Path(folder))}
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
    return {name: round(1e6 * statistics.median(found), 1) for name, found in times.items()}


def _memmap(cases: Sequence[StoredCase]) -> Read:
    return lambda c, s: (np.array(cases[c].image[s]), np.array(cases[c].mask[s]))


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


def loader_speed(datamodule: SliceDataModule) -> dict[str, float]:
    """Return augmented training samples per second: median, least and most of the rounds."""
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
    return {
        "median": round(statistics.median(rates)),
        "min": round(min(rates)),
        "max": round(max(rates)),
    }


def waiting(datamodule: SliceDataModule, parts: Parts, reader: Reader) -> dict[str, float]:
    """Return the median seconds of a training step and the share of them spent on waiting."""
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
        target = network_target(batch["mask"], len(reader.classes), reader.multilabel)
        loss(model(batch["image"]), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        ended = time.perf_counter()
        if number >= 2:  # the first ones warm up
            waits.append(arrived - mark)
            steps.append(ended - mark)
        mark = time.perf_counter()
    return {
        "seconds": round(statistics.median(steps), 4),
        "waiting_share": round(sum(waits) / sum(steps), 5),
    }


def show(figures: Figures) -> None:
    """Print the figures."""
    table = Table(title=f"Reading a random slice of {figures['slice']} and its mask")
    for name in ("way", "us", "times decoding"):
        table.add_column(name, justify="left" if name == "way" else "right")
    decoding = figures["read_us"]["decoding"]
    for name, value in figures["read_us"].items():
        table.add_row(name, f"{value:.0f}", f"{decoding / value:.1f}x faster")
    console = Console()
    console.print(table)
    rate, step = figures["samples_per_s"], figures["step"]
    console.print(
        f"Loader with {figures['workers']} workers: {rate['median']} samples/s "
        f"({rate['min']} to {rate['max']})\n"
        f"Training step: {step['seconds']:.3f} s, {100 * step['waiting_share']:.2f} % of it "
        "waiting for data\n"
        f"Memory is copied at {figures['copy_gb_per_s']} GB/s; {torch.get_num_threads()} threads",
        highlight=False,
    )
