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


def settle_margin(
    given: float | Mapping[str, Any] | None, runs: Sequence[RunFolder], metric: ComparedMetric
) -> Margin:
    """Return the margin of a comparison: the given one, the declared one, or the default.

    Instead of a margin, the settings of a study may be given.
    """
    if isinstance(given, Mapping):
        given = declared_margin(given, metric)
    declared = {declared_margin(run.facts.declared, metric) for run in runs}
    numbers = sorted(size for size in declared if size is not None)
    sizes = ", ".join([f"{size:g}" for size in numbers] + ["none"] * (None in declared))
    digests = ", ".join(sorted({str(run.facts.declared.get("digest")) for run in runs}))
    agreed = next(iter(declared)) if len(declared) == 1 else None
    doubt = "" if len(declared) == 1 else f"the runs declare different margins ({sizes})"
    if agreed is not None and given in (None, agreed):
        within = f"Equivalent and as good mean within {agreed:g} {metric.unit}"
        return Margin(agreed, f"{within}, which the study declared before its runs ({digests}).")
    if given is not None:
        other = "" if declared == {None} else f"; the runs declare {sizes}"
        doubt = f"the margin of {given:g} {metric.unit} was not declared before the runs{other}"
        return Margin(given, f"Equivalent and as good mean within {given:g} {metric.unit}.", doubt)
    if metric.has_unit:
        return Margin(
            None,
            f"No margin in {metric.unit} was given, so that equivalence is not judged; set margin "
            "to what matters for your use, best in the study before its runs.",
            doubt,
        )
    return Margin(
        DEFAULT,
        f"Equivalent and as good mean within {DEFAULT:g} {metric.unit}. This margin is a default: "
        "set margin to what matters for your use, best in the study before its runs.",
        doubt,
    )


def declared_margin(declared: Mapping[str, Any], metric: ComparedMetric) -> float | None:
    """Return the margin that a run's study declared for a metric.

    A single number is one of shares, unless the study names no other metric than this.
    """
    margin = declared.get("margin")
    if isinstance(margin, Mapping):
        margin = margin.get(metric.name)
    elif metric.has_unit and declared.get("metrics") != [metric.name]:
        return None
    return None if margin is None else float(margin)
