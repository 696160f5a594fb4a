"""Has anything become slow? Ratios against plain loops, measured here and now, within bounds.

A ratio holds across machines, as its two sides are measured in alternation. The bounds are in
`bounds.json`, by model where they differ. Three must hold anywhere: a small model's step at most a
quarter beyond the bare loop's, a volume no slower than slice by slice, the store ten times as fast
as decoding. Times over arithmetic may be about half as long again as was measured with the tiny
sizes, which take milliseconds: many repeats steady their medians.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from attnseg.benchmark import latency, loading, overhead, step, volume
from attnseg.benchmark.report import Row, number
from attnseg.config.schema import Benchmark
from attnseg.errors import AttnsegError

log = logging.getLogger(__name__)

BOUNDS = Path(__file__).with_name("bounds.json")
SLICES = 8  # of the volume
REPEATS = 10  # times as many, of single passes
FLOAT32 = ("float32",)


def engine(config: Benchmark, device: torch.device) -> float:
    """Return a step of the engine over one of the bare loop."""
    return 1 + middle(overhead.measure(config, device, FLOAT32)[0], "overhead") / 100


def whole(config: Benchmark, device: torch.device) -> float:
    """Return the time of a volume over that of the published procedure."""
    few = config.model_copy(update={"slices": SLICES})
    return 1 / middle(volume.measure(few, device, FLOAT32)[-1], "speedup")


def store(config: Benchmark, device: torch.device) -> float:
    """Return the time to read a slice from the store over that to decode it."""
    rows = {row["what"]: row for row in loading.measure(config, device, FLOAT32)}
    return middle(rows["store (numpy memmap)"], "us") / middle(rows["decoding"], "us")


def training(config: Benchmark, device: torch.device) -> float:
    """Return the time of a step over that of a loop of matrix products with as many MACs."""
    return 100 / middle(step.measure(many(config), device, FLOAT32)[0], "mfu")


def inference(config: Benchmark, device: torch.device) -> float:
    """Return the time of a forward pass over that of matrix products with as many MACs."""
    return 100 / middle(latency.measure(many(config), device, FLOAT32)[0], "share")


def many(config: Benchmark) -> Benchmark:
    """Return a configuration with `REPEATS` times as many repeats."""
    return config.model_copy(update={"repeats": REPEATS * config.repeats})


RATIOS: dict[str, Callable[[Benchmark, torch.device], float]] = {
    "engine step / bare loop": engine,
    "volume / slice by slice": whole,
    "reading from the store / decoding": store,
    "training step / its arithmetic at the GEMM rate": training,
    "forward pass / its arithmetic at the GEMM rate": inference,
}


def middle(row: Row, key: str) -> float:
    """Return the median of a cell."""
    cell = row[key]
    assert isinstance(cell, dict)
    return cell["median"]


def check(config: Benchmark, device: torch.device) -> None:
    """Measure every ratio; one beyond its bound is measured once more.

    Raises:
        AttnsegError: a ratio is worse than its bound, twice.
    """
    bounds: dict[str, dict[str, float]] = json.loads(BOUNDS.read_text())
    worse = []
    for name, measured in RATIOS.items():
        known = bounds[name]
        bound = known.get(config.choices["model"], known["default"])
        ratio = measured(config, device)
        if ratio > bound:  # others may have had the machine
            ratio = min(ratio, measured(config, device))
        log.info("%s: %s, at most %s", name, number(ratio), number(bound))
        if ratio > bound:
            worse.append(f"{name} {number(ratio)} instead of at most {number(bound)}")
    if worse:
        raise AttnsegError(f"bounds: {', '.join(worse)}; find what became slow, or raise the bound")
