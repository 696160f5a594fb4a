"""A training step in units that hold across machines: GEMM-equivalent GFLOP per image, and MFU."""

from collections.abc import Sequence
from functools import partial

import torch

from attnseg.benchmark.machine import Gemm
from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import Sample, alternate, median_and_range
from attnseg.benchmark.workload import Workload
from attnseg.config import cost

COLUMNS = {
    "label": "model",
    "precision": "precision",
    "batch": "batch",
    "seconds": "step, s",
    "equivalent": "GEMM-equivalent, GFLOP/image",
    "published": "published code",
    "ratio": "ours / published",
    "work": "6 x MACs, GFLOP/image",
    "mfu": "MFU, %",
    "published_mfu": "published code",
    "peak_gib": "peak memory, GiB",
    "published_gib": "published code",
    "gemm": "GEMM beside it, GFLOP/s",
}


def measure_step(config: Benchmark, device: torch.device, precisions: Sequence[str]) -> list[Row]:
    """Time a training step in each precision, in alternation, a matrix product before each.

    The first precision runs alone to begin with, for the peak memory of the process.
    """
    load = Workload(config, device)
    for _ in range(2):  # the second one holds the optimizer's state, too
        load.step(precisions[0])
    peak = cost.peak_memory() / 2**30
    works = {name: partial(load.step, name) for name in precisions}
    samples = alternate(works, config.repeats, Gemm(device, precisions).rates)
    work = 6e-9 * load.macs()
    known = config.published
    rows: list[Row] = []
    for name, found in samples.items():
        equivalent = median_and_range(equivalents(found, load.batch_size))
        shares = [
            100 * mfu(work, sample.seconds, sample.gauge[name], load.batch_size) for sample in found
        ]
        row: Row = {
            "precision": name,
            "batch": load.batch_size,
            "seconds": median_and_range(sample.seconds for sample in found),
            "equivalent": equivalent,
            "work": work,
            "mfu": median_and_range(shares),
            "gemm": median_and_range(sample.gauge[name] for sample in found),
        }
        if name == precisions[0]:
            row["peak_gib"] = peak
        published = known and {"float32": known.step, "bf16": known.step_bf16}[name]
        if published:
            row |= {"published": published, "ratio": equivalent["median"] / published}
        if known and name == "float32":
            share = 100 * known.work / known.step
            row |= {"published_mfu": share, "published_gib": known.memory}
        rows.append(row)
    return rows


def equivalents(samples: list[Sample], batch_size: int) -> list[float]:
    """Return what a float32 matrix product would have computed in each sample's time.

    Returns:
        GFLOP per image: seconds x GFLOP/s of the product just before / batch.
    """
    return [sample.seconds * sample.gauge["float32"] / batch_size for sample in samples]


def mfu(work: float, seconds: float, rate: float, batch_size: int) -> float:
    """Return the share of the matrix product's rate that a step reaches.

    Args:
        work: GFLOP per image, 6 x MACs: forward, and twice that backward.
        seconds: of the step.
        rate: of the matrix product in the step's precision, GFLOP/s.
        batch_size: images per step.
    """
    return work * batch_size / (seconds * rate)
