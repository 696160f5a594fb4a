"""Sentences that state the outcome of a comparison."""

import math
from collections.abc import Sequence

from attnseg.study.contrasts import Contrast
from attnseg.study.metric import ComparedMetric

MAX_NAMED = 4  # more variants are counted in the headline instead of named


def write_headline(
    contrasts: Sequence[Contrast], baseline: str, metric: ComparedMetric, margin: float
) -> str:
    """Return all verdicts against a baseline in one sentence, with few numbers."""
    within = f"within {margin:g} {metric.unit}"
    groups: dict[str, list[str]] = {}
    for c in contrasts:
        if c.different:
            better = (c.difference > 0) == metric.up
            statement = f"{{}} {'better' if better else 'worse'} than {baseline}"
            statement += f", though {within}" if c.equivalent else ""
        elif c.equivalent:
            statement = f"{{}} equivalent to {baseline} {within}"
        else:
            statement = f"no difference from {baseline} is shown for {{}}"
        groups.setdefault(statement, []).append(c.variant)
    clauses = []
    for statement, names in groups.items():
        subject = _join_names(names)
        if statement.startswith("{}"):
            subject += " is" if len(names) == 1 else " are"
        clauses.append(statement.replace("{}", subject))
    text = "; ".join(clauses)
    return f"N{text[1:]}." if next(iter(groups)).startswith("no ") else f"{text}."


def _join_names(names: Sequence[str]) -> str:
    if len(names) > MAX_NAMED:
        return f"{len(names)} variants"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def write_verdict(
    contrast: Contrast, metric: ComparedMetric, margin: float, seed_effect: float
) -> str:
    """Return one sentence that claims no more than was shown.

    Args:
        contrast: the comparison.
        metric: the compared metric.
        margin: of equivalence, in the metric's unit.
        seed_effect: change of the difference to expect from other seeds (two standard deviations),
            in the metric's unit; NaN if unknown.
    """
    c, unit = contrast, metric.unit
    numbers = f"n = {_patient_count(c)}, difference {_difference_text(c.difference, metric)}"
    if c.patients > 1:
        numbers += f", {_interval_with_level(c, metric)}"
    within = f"within {margin:g} {unit}"
    if c.different:
        better = (c.difference > 0) == metric.up
        text = f"{c.variant} is {'better' if better else 'worse'} than {c.baseline} by "
        text += f"{metric.text(abs(c.difference))} {unit} ({numbers})"
        if c.equivalent:
            text += f", which is {within}, the margin of equivalence"
        return text + _seed_caveat(c, metric, seed_effect)
    if c.equivalent:
        text = f"{c.variant} is equivalent to {c.baseline} {within} ({numbers})"
        return text + _seed_caveat(c, metric, seed_effect)
    limit = _detection_limit(c, metric)
    return f"{c.variant} against {c.baseline}: no difference shown: {limit} ({numbers})"


def _detection_limit(c: Contrast, metric: ComparedMetric) -> str:
    if math.isinf(c.detectable):
        return f"with {_patient_count(c)} none could have been shown, however large"
    return (
        f"with {_patient_count(c)} the smallest difference that could have been shown is "
        f"{metric.text(c.detectable)} {metric.unit}"
    )


def _patient_count(c: Contrast) -> str:
    return f"{c.patients} patient{'' if c.patients == 1 else 's'}"


def _interval_with_level(c: Contrast, metric: ComparedMetric) -> str:
    level = f"{100 * (1 - c.alpha):g} % interval"
    if c.family == 1:
        return f"{level} {metric.interval_text(c.low, c.high)}"
    ends = metric.interval_text(c.simultaneous_low, c.simultaneous_high)
    return f"{level} {ends}, corrected for {c.family} comparisons"


def _difference_text(value: float, metric: ComparedMetric) -> str:
    """Return a difference without the sign of a negative zero."""
    return metric.text(value if abs(value) >= 0.5 * 10**-metric.digits else 0.0)


def _seed_caveat(c: Contrast, metric: ComparedMetric, seed_effect: float) -> str:
    if math.isnan(seed_effect):
        return "; with networks of a single seed: others may differ"
    if abs(c.difference) < seed_effect:
        return f"; other seeds alone may move it by {metric.text(seed_effect)}"
    return ""
