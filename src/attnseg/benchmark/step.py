"""Time of a training step in units that compare across machines: GEMM-equivalent GFLOP, MFU."""

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

    The peak memory of the process is read after steps in the first precision alone.
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
    for name, timed in samples.items():
        equivalent = median_and_range(equivalents(timed, load.batch_size))
        shares = [100 * mfu(work, s.seconds, s.gauge[name], load.batch_size) for s in timed]
        row: Row = {
            "precision": name,
            "batch": load.batch_size,
            "seconds": median_and_range(sample.seconds for sample in timed),
            "equivalent": equivalent,
            "work": work,
            "mfu": median_and_range(shares),
            "gemm": median_and_range(sample.gauge[name] for sample in timed),
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
    """Return the GFLOP per image of float32 matrix products that take as long as each sample.

    The rate is that of the product just before the sample.
    """
    return [sample.seconds * sample.gauge["float32"] / batch_size for sample in samples]


def mfu(work: float, seconds: float, rate: float, batch_size: int) -> float:
    """Return the share of a matrix product's rate (GFLOP/s, in the step's precision) that is used.

    `work` is in GFLOP per image: 6 x MACs, a third of it forward and the rest backward.
    """
    return work * batch_size / (seconds * rate)
