"""The margin of equivalence: declared by a study before its runs, or given afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnseg.runs.run_folder import RunFolder
from attnseg.study.metric import ComparedMetric

DEFAULT = 0.01  # of a share; there is none of a length, whose meaning depends on the organ


@dataclass(frozen=True)
class Margin:
    """A margin in the metric's unit, and where it is from."""

    size: float | None  # `None` if equivalence is not judged
    note: str  # a sentence
    doubt: str = ""  # a reason to doubt verdicts of equivalence


def settle_margin(given: float | None, runs: Sequence[RunFolder], metric: ComparedMetric) -> Margin:
    """Return the margin of a comparison: the given one, the declared one, or the default."""
    declared = {declared_margin(run.facts.declared, metric.name) for run in runs}
    digests = ", ".join(sorted({str(run.facts.declared.get("digest")) for run in runs}))
    agreed = declared.pop() if len(declared) == 1 else None
    if agreed is not None and given in (None, agreed):
        within = f"Equivalent and as good mean within {agreed:g} {metric.unit}"
        return Margin(agreed, f"{within}, which the study declared before its runs ({digests}).")
    if given is not None:
        other = f"; the runs declare {agreed:g}" if agreed is not None else ""
        doubt = f"the margin of {given:g} {metric.unit} was not declared before the runs{other}"
        return Margin(given, f"Equivalent and as good mean within {given:g} {metric.unit}.", doubt)
    if metric.worst is None:
        return Margin(
            None,
            f"No margin in {metric.unit} was given, so that equivalence is not judged; set margin "
            "to what matters for your use, best in the study before its runs.",
        )
    return Margin(
        DEFAULT,
        f"Equivalent and as good mean within {DEFAULT:g} {metric.unit}. This margin is a default: "
        "set margin to what matters for your use, best in the study before its runs.",
    )


def declared_margin(declared: Mapping[str, Any], metric: str) -> float | None:
    """Return the margin that a run's study declared for a metric."""
    margin = declared.get("margin")
    if isinstance(margin, Mapping):
        margin = margin.get(metric)
    return None if margin is None else float(margin)
