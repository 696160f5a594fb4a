"""The average cost of a variant, read from its runs, and the Pareto front of quality and cost."""

import math
from collections.abc import Callable, Mapping, Sequence

from attnseg.runs.facts import RunFacts
from attnseg.runs.run_folder import RunFolder
from attnseg.study.contrasts import Contrast

COSTS: dict[str, Callable[[RunFacts], float | None]] = {
    "parameters": lambda facts: facts.parameters["total"],
    "macs": lambda facts: facts.macs,
    "fit_seconds": lambda facts: facts.seconds.get("fit"),
    "peak_memory_bytes": lambda facts: facts.peak_memory_bytes,
    "joules_per_image": lambda facts: facts.energy.get("joules_per_image"),
}
# The shares of a network that a change of its attention does not reach.
SHARES: dict[str, Callable[[RunFacts], float | None]] = {
    "parameters_outside": lambda facts: _share_outside(
        facts, "parameters", facts.parameters["total"]
    ),
    "macs_outside": lambda facts: _share_outside(facts, "macs", facts.macs),
}


def _share_outside(facts: RunFacts, cost: str, total: int) -> float | None:
    """Return the share of a cost outside attention; `None` if the run has not recorded it."""
    return 1 - facts.attention[cost] / total if facts.attention and total else None


def average_costs(runs: Sequence[RunFolder]) -> dict[str, float]:
    """Return the mean of each cost and share over runs; NaN if any run has not recorded it."""
    readers = COSTS | SHARES
    return {name: _mean_or_nan([read(run.facts) for run in runs]) for name, read in readers.items()}


def _mean_or_nan(values: Sequence[float | None]) -> float:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else math.nan


def find_pareto_front(
    quality: Mapping[str, float], cost: Mapping[str, float], contrasts: Sequence[Contrast], up: bool
) -> dict[str, str]:
    """Return the place of each variant with regard to the Pareto front of quality and cost.

    `no`: another variant that costs no more is shown to be better, or one that costs less is shown
    to be equivalent. `tie`: another one that costs no more has the better mean, which is not shown.
    `yes`: neither. A variant without a mean is never on the front.

    Args:
        quality: means by variant.
        cost: by variant.
        contrasts: of all pairs of variants.
        up: whether higher is better.
    """
    shown = {}
    for c in contrasts:
        gain = c.difference if up else -c.difference
        for one, other, better in (
            (c.variant, c.baseline, gain > 0),
            (c.baseline, c.variant, gain < 0),
        ):
            shown[one, other] = (c.different and better, c.equivalent)
    places = {}
    for name, own in quality.items():
        place = "no" if math.isnan(own) else "yes"
        for other, theirs in quality.items():
            if other == name or not cost[other] <= cost[name]:
                continue
            cheaper, gain = cost[other] < cost[name], theirs - own if up else own - theirs
            better, equivalent = shown.get((other, name), (False, False))
            if better or (cheaper and equivalent):
                place = "no"
            elif place == "yes" and (gain > 0 or (cheaper and gain == 0)):
                place = "tie"
        places[name] = place
    return places
