"""Sentences that state the outcome of a comparison."""

import math
from collections.abc import Sequence

from attnseg.study.contrasts import Contrast
from attnseg.study.metric import ComparedMetric
from attnseg.study.null_control import judge_null_controls

MAX_NAMED = 4  # more variants are counted in the headline instead of named


def write_headline(
    contrasts: Sequence[Contrast],
    baseline: str,
    metric: ComparedMetric,
    margin: float,
    controls: Sequence[str] = (),
) -> str:
    """Return all verdicts against a baseline in one sentence, with few numbers.

    A null control (see `null_control`) within the margin of its baseline is stated first.
    """
    near = judge_null_controls(contrasts, controls, metric, margin)
    first = f"These data cannot tell attentions apart: {'; '.join(near)}. " if near else ""
    within = f"within {margin:g} {metric.unit}"
    groups: dict[str, list[str]] = {}
    for c in contrasts:
        if c.different:
            statement = f"{{}} {_direction(c, metric)} than {baseline}"
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
    if next(iter(groups)).startswith("no "):
        text = f"N{text[1:]}"
    return f"{first}{text}."


def _direction(c: Contrast, metric: ComparedMetric) -> str:
    return "better" if (c.difference > 0) == metric.up else "worse"


def _join_names(names: Sequence[str]) -> str:
    if len(names) > MAX_NAMED:
        return f"{len(names)} variants"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def write_verdict(
    contrast: Contrast, metric: ComparedMetric, margin: float, seed_effect: float
) -> str:
    """Return one sentence that claims no more than was shown.

    `seed_effect` is the change of the difference to expect from other seeds (two standard
    deviations); NaN if unknown. It and `margin` are in the metric's unit.
    """
    c, unit = contrast, metric.unit
    patients = f"{c.patients} patient{'' if c.patients == 1 else 's'}"
    numbers = f"n = {patients}, difference {_difference_text(c.difference, metric)}"
    if c.patients > 1:
        numbers += f", {_interval_with_level(c, metric)}"
    within = f"within {margin:g} {unit}"
    if c.different:
        text = f"{c.variant} is {_direction(c, metric)} than {c.baseline} by "
        text += f"{metric.text(abs(c.difference))} {unit} ({numbers})"
        if c.equivalent:
            text += f", which is {within}, the margin of equivalence"
        return text + _seed_caveat(c, metric, seed_effect)
    if c.equivalent:
        text = f"{c.variant} is equivalent to {c.baseline} {within} ({numbers})"
        return text + _seed_caveat(c, metric, seed_effect)
    smallest = f"{metric.text(c.detectable)} {unit}"
    limit = f"the smallest difference that could have been shown is {smallest}"
    if math.isinf(c.detectable):
        limit = "none could have been shown, however large"
    text = f"{c.variant} against {c.baseline}: no difference shown"
    return f"{text}: with {patients} {limit} ({numbers})"


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
