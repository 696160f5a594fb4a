"""The average cost of a variant, read from its runs, and the Pareto front of quality and cost."""

import math
from collections.abc import Callable, Sequence

from attnseg.runs.facts import RunFacts
from attnseg.runs.run_folder import RunFolder

COSTS: dict[str, Callable[[RunFacts], float | None]] = {
    "parameters": lambda facts: facts.parameters["total"],
    "macs": lambda facts: facts.macs,
    "fit_seconds": lambda facts: facts.seconds.get("fit"),
    "peak_memory_bytes": lambda facts: facts.peak_memory_bytes,
}


def average_costs(runs: Sequence[RunFolder]) -> dict[str, float]:
    """Return the mean of each cost over runs; NaN if any run has not recorded it."""
    return {name: _mean_or_nan([read(run.facts) for run in runs]) for name, read in COSTS.items()}


def _mean_or_nan(values: Sequence[float | None]) -> float:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else math.nan


def find_pareto_front(quality: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """Return whether each point is on the Pareto front.

    A point is on the front unless another one is at least as good and costs no more, and differs in
    one of the two. A point whose quality is NaN is never on it.
    """
    points = list(zip(quality, cost, strict=True))
    return [
        not math.isnan(q)
        and not any(other >= q and less <= c and (other, less) != (q, c) for other, less in points)
        for q, c in points
    ]
