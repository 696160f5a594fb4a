"""Ratios against plain loops, measured here and now and held to bounds: has anything become slow?

A ratio holds across machines, as its two sides are measured in alternation. The bounds are in
`bounds.json`, by model where they differ. Three must hold anywhere: a small model's step at most a
quarter beyond the bare loop's, a volume no slower than slice by slice, the store ten times as fast
as decoding. Times over arithmetic may be about half as long again as was measured with the tiny
sizes, which take milliseconds: many repeats steady their medians.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from attnseg.benchmark.latency import measure_latency
from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row, format_number
from attnseg.benchmark.step import measure_step
from attnseg.errors import AttnsegError
from scripts.benchmarks.loading import measure_loading
from scripts.benchmarks.overhead import BARE, OURS, beyond, time_loops
from scripts.benchmarks.volume import measure_volume

log = logging.getLogger("attnseg.benchmark")  # the one whose messages are printed

BOUNDS = Path(__file__).with_name("bounds.json")
SLICES = 8  # of the volume
REPEATS = 10  # times as many, of single passes
FLOAT32 = ("float32",)
COLUMNS = {"label": "model", "what": "ratio", "ratio": "measured", "bound": "at most"}


def engine_over_bare_loop(config: Benchmark, device: torch.device) -> float:
    """Return a step of the training loop over one of the bare loop."""
    clocks = time_loops(config, device, with_lightning=False)
    return 1 + median(beyond(clocks[OURS], clocks[BARE])) / 100


def volume_over_slice_by_slice(config: Benchmark, device: torch.device) -> float:
    """Return the time of a volume over that of the published procedure."""
    return 1 / median_of(measure_volume(config, device, FLOAT32, SLICES)[-1], "speedup")


def reading_over_decoding(config: Benchmark, device: torch.device) -> float:
    """Return the time to read a slice from the store over that to decode it."""
    rows = {row["what"]: row for row in measure_loading(config, device, FLOAT32)}
    return median_of(rows["store"], "us") / median_of(rows["decoding"], "us")


def step_over_arithmetic(config: Benchmark, device: torch.device) -> float:
    """Return the time of a step over that of a loop of matrix products with as many MACs."""
    return 100 / median_of(measure_step(repeat_more(config), device, FLOAT32)[0], "mfu")


def forward_over_arithmetic(config: Benchmark, device: torch.device) -> float:
    """Return the time of a forward pass over that of matrix products with as many MACs."""
    return 100 / median_of(measure_latency(repeat_more(config), device, FLOAT32)[0], "share")


def repeat_more(config: Benchmark) -> Benchmark:
    """Return a configuration with `REPEATS` times as many repeats."""
    return config.model_copy(update={"repeats": REPEATS * config.repeats})


def median_of(row: Row, key: str) -> float:
    """Return the median of a cell."""
    cell = row[key]
    assert isinstance(cell, dict)
    return cell["median"]


RATIOS: dict[str, Callable[[Benchmark, torch.device], float]] = {
    "engine step / bare loop": engine_over_bare_loop,
    "volume / slice by slice": volume_over_slice_by_slice,
    "reading from the store / decoding": reading_over_decoding,
    "training step / its arithmetic at the GEMM rate": step_over_arithmetic,
    "forward pass / its arithmetic at the GEMM rate": forward_over_arithmetic,
}


def measure_check(config: Benchmark, device: torch.device, precisions: Sequence[str]) -> list[Row]:
    """Measure every ratio; one beyond its bound is measured once more.

    Raises:
        AttnsegError: a ratio is worse than its bound, twice.
    """
    bounds: dict[str, dict[str, float]] = json.loads(BOUNDS.read_text())
    rows: list[Row] = []
    worse = []
    for name, measure in RATIOS.items():
        by_model = bounds[name]
        bound = by_model.get(config.choices["model"], by_model["default"])
        ratio = measure(config, device)
        if ratio > bound:  # another program may have used the machine
            ratio = min(ratio, measure(config, device))
        log.info("%s: %s, at most %s", name, format_number(ratio), format_number(bound))
        rows.append({"what": name, "ratio": ratio, "bound": bound})
        if ratio > bound:
            worse.append(f"{name} {format_number(ratio)} instead of at most {format_number(bound)}")
    if worse:
        raise AttnsegError(f"bounds: {', '.join(worse)}; find what became slow, or raise the bound")
    return rows
