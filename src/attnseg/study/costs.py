"""What variants cost, as their runs recorded it, and which are worth it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attnseg.runs.finished import Run

Fact = Callable[[Mapping[str, Any]], float | None]
COSTS: dict[str, Fact] = {
    "parameters": lambda facts: facts["parameters"]["total"],
    "macs": lambda facts: facts["macs"],
    "fit_seconds": lambda facts: facts["seconds"].get("fit"),
    "peak_memory_bytes": lambda facts: facts.get("peak_memory_bytes"),
}


def costs(runs: Sequence[Run]) -> dict[str, float]:
    """Return the mean of each cost over runs; NaN if a run has not recorded it."""
    return {name: _mean([fact(run.facts) for run in runs]) for name, fact in COSTS.items()}


def _mean(found: Sequence[float | None]) -> float:
    known = [float(value) for value in found if value is not None]
    return sum(known) / len(known) if len(known) == len(found) else math.nan


def pareto_front(quality: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """Return which points no other beats: at least as good, at most as costly, and not both equal.

    Args:
        quality: higher is better; NaN is never on the front.
        cost: lower is better.
    """
    points = list(zip(quality, cost, strict=True))
    return [
        not math.isnan(q)
        and not any(other >= q and less <= c and (other, less) != (q, c) for other, less in points)
        for q, c in points
    ]
