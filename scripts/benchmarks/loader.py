"""Samples per second of the training loader against its processes and the size of its images.

Every combination is timed in alternation with the others. The clock starts when the batches that
the processes make ahead are used up, so that their start does not count. Each round reads the same
samples twice: after the store's files have been dropped from the page cache, and from the page
cache. Beside both stands the rate at which the same files reach a process that does nothing else.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import median_and_range
from attnseg.config.components import build_components
from attnseg.data.datamodule import SliceDataModule
from attnseg.errors import ConfigError
from attnseg.preparation.datasets import load_dataset, open_reader
from attnseg.training.setup import make_loaders

PROCESSES = (0, 1, 2, 4, 8)
SIZES = (128, 224, 384)  # height and width of the network's input, pixels
BATCHES = 60  # per round, if the data has as many
BLOCK = 1 << 20  # bytes of a file that are read at a time
COLUMNS = {
    "label": "data",
    "processes": "loader processes",
    "size": "image size",
    "rate": "samples/s, page cache",
    "cold": "samples/s, from disk",
    "bytes": "MB/s of the files, page cache",
    "cold_bytes": "MB/s of the files, from disk",
}


def measure_loader(config: Benchmark, device: torch.device, precisions: Sequence[str]) -> list[Row]:
    """Measure the loader at each number of processes and size of images, and the store's files."""
    reader = open_reader(config)
    data = load_dataset(config, reader)
    files = [case.folder / name for case in data.train for name in ("image.npy", "mask.npy")]
    loaders: dict[tuple[int, int], SliceDataModule] = {}
    for size, processes in itertools.product(SIZES, PROCESSES):
        varied = config.revise("dataset", image_size=(size, size))
        varied = varied.revise("trainer", num_workers=processes)
        loaders[size, processes] = make_loaders(varied, data, build_components(varied, reader))
    warm = {key: list[float]() for key in loaders}
    cold = {key: list[float]() for key in loaders}
    copied, fetched = list[float](), list[float]()
    for number in range(config.repeats):
        for key in list(loaders) if number % 2 == 0 else reversed(loaders):
            drop_from_page_cache(files)
            cold[key].append(epoch_rate(loaders[key], number))
            warm[key].append(epoch_rate(loaders[key], number))
        drop_from_page_cache(files)
        fetched.append(reading_rate(files))
        copied.append(reading_rate(files))
    label = f"{config.dataset_name}, {sum(path.stat().st_size for path in files) / 1e9:.2f} GB"
    rows: list[Row] = [
        {
            "label": label,
            "processes": processes,
            "size": f"{size}x{size}",
            "rate": median_and_range(warm[size, processes]),
            "cold": median_and_range(cold[size, processes]),
        }
        for size, processes in loaders
    ]
    rows.append(
        {
            "label": label,
            "bytes": median_and_range(copied),
            "cold_bytes": median_and_range(fetched),
        }
    )
    return rows


def drop_from_page_cache(files: Iterable[Path]) -> None:
    """Let the system forget what it holds of files in memory."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # Pages that are not yet written cannot be dropped.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epoch_rate(datamodule: SliceDataModule, epoch: int) -> float:
    """Return the augmented training samples per second, once no batch is left from the start.

    Raises:
        ConfigError: an epoch has no batch after those.
    """
    loader = datamodule.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    batches = iter(loader)
    ahead = loader.num_workers * (loader.prefetch_factor or 0)
    for _ in itertools.islice(batches, ahead + 1):
        pass
    started, samples = time.perf_counter(), 0
    for batch in itertools.islice(batches, BATCHES):
        samples += len(batch["image"])
    taken = time.perf_counter() - started
    del batches, loader  # Ends the processes, which would go on while the next are timed.
    if not samples:
        raise ConfigError(
            "dataset.batch_size: the epoch has too few batches to measure; use a smaller one"
        )
    return samples / taken


def reading_rate(files: Iterable[Path]) -> float:
    """Return the MB per second at which files are read one after the other."""
    started, count = time.perf_counter(), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            read: Callable[[], bytes] = partial(file.read, BLOCK)
            count += sum(map(len, iter(read, b"")))
    return count / 1e6 / (time.perf_counter() - started)
