"""Latency: the time that a network takes for a batch of one image."""

from collections.abc import Sequence
from functools import partial

import torch

from attnseg.benchmark.machine import Gemm
from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.step import equivalents
from attnseg.benchmark.timing import alternate, median_and_range
from attnseg.benchmark.workload import Workload

PUBLISHED_GEMM = 195.0  # GFLOP/s, float32, beside the latencies of the published codes
COLUMNS = {
    "label": "model",
    "precision": "precision",
    "ms": "latency, ms",
    "equivalent": "GEMM-equivalent, GFLOP",
    "published": "published code",
    "ratio": "ours / published",
    "work": "2 x MACs, GFLOP",
    "share": "share of the GEMM rate, %",
    "gemm": "GEMM beside it, GFLOP/s",
}


def measure_latency(
    config: Benchmark, device: torch.device, precisions: Sequence[str]
) -> list[Row]:
    """Time the forward pass of one image in each precision, a matrix product before each."""
    load = Workload(config, device, batch_size=1)
    works = {name: partial(load.forward, name) for name in precisions}
    samples = alternate(works, config.repeats, Gemm(device, precisions).rates)
    work = 2e-9 * load.macs()
    rows: list[Row] = []
    for name, timed in samples.items():
        equivalent = median_and_range(equivalents(timed, 1))
        row: Row = {
            "precision": name,
            "ms": median_and_range(1e3 * sample.seconds for sample in timed),
            "equivalent": equivalent,
            "work": work,
            "share": median_and_range(100 * work / (s.seconds * s.gauge[name]) for s in timed),
            "gemm": median_and_range(sample.gauge[name] for sample in timed),
        }
        if config.published and name == "float32":
            published = 1e-3 * config.published.latency * PUBLISHED_GEMM
            row |= {"published": published, "ratio": equivalent["median"] / published}
        rows.append(row)
    return rows
