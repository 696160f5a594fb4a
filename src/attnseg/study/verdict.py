"""What a comparison says, in a sentence."""

import math
from collections.abc import Sequence

from attnseg.study.contrasts import Contrast
from attnseg.study.metric import Metric

MANY = 4  # variants; more are counted, not named, in the headline


def headline(contrasts: Sequence[Contrast], base: str, metric: Metric, margin: float) -> str:
    """Return all verdicts against a baseline in one sentence, without most of their numbers."""
    within = f"within {margin:g} {metric.unit}"
    groups: dict[str, list[str]] = {}
    for c in contrasts:
        if c.different:
            better = (c.difference > 0) == metric.up
            said = f"{{}} {'better' if better else 'worse'} than {base}"
            said += f", though {within}" if c.equivalent else ""
        elif c.equivalent:
            said = f"{{}} equivalent to {base} {within}"
        else:
            said = f"no difference from {base} is shown for {{}}"
        groups.setdefault(said, []).append(c.variant)
    parts = []
    for said, names in groups.items():
        listed = _list(names)
        if said.startswith("{}"):
            listed += " is" if len(names) == 1 else " are"
        parts.append(said.replace("{}", listed))
    text = "; ".join(parts)
    return f"N{text[1:]}." if next(iter(groups)).startswith("no ") else f"{text}."


def _list(names: Sequence[str]) -> str:
    if len(names) > MANY:
        return f"{len(names)} variants"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def verdict(contrast: Contrast, metric: Metric, margin: float, seeds_move: float) -> str:
    """Return one sentence; it claims no more than was shown.

    Args:
        contrast: the comparison.
        metric: that was compared.
        margin: of equivalence, in the metric's unit.
        seeds_move: how far other seeds would move the difference (two standard deviations), in the
            metric's unit; NaN if unknown.
    """
    c, unit = contrast, metric.unit
    numbers = f"n = {_patients(c)}, difference {_signed(c.difference, metric)}"
    if c.patients > 1:
        numbers += f", {_interval(c, metric)}"
    within = f"within {margin:g} {unit}"
    if c.different:
        better = (c.difference > 0) == metric.up
        text = f"{c.variant} is {'better' if better else 'worse'} than {c.baseline} by "
        text += f"{metric.text(abs(c.difference))} {unit} ({numbers})"
        if c.equivalent:
            text += f", which is {within}, the margin of equivalence"
        return text + _seeds(c, metric, seeds_move)
    if c.equivalent:
        text = f"{c.variant} is equivalent to {c.baseline} {within} ({numbers})"
        return text + _seeds(c, metric, seeds_move)
    return (
        f"{c.variant} against {c.baseline}: no difference shown: {_limits(c, metric)} ({numbers})"
    )


def _limits(c: Contrast, metric: Metric) -> str:
    if math.isinf(c.detectable):
        return f"with {_patients(c)} none could have been shown, however large"
    return (
        f"with {_patients(c)} the smallest difference that could have been shown is "
        f"{metric.text(c.detectable)} {metric.unit}"
    )


def _patients(c: Contrast) -> str:
    return f"{c.patients} patient{'' if c.patients == 1 else 's'}"


def _interval(c: Contrast, metric: Metric) -> str:
    level = f"{100 * (1 - c.alpha):g} % interval"
    if c.family == 1:
        return f"{level} {metric.between(c.low, c.high)}"
    ends = metric.between(c.simultaneous_low, c.simultaneous_high)
    return f"{level} {ends}, corrected for {c.family} comparisons"


def _signed(value: float, metric: Metric) -> str:
    return metric.text(value if abs(value) >= 0.5 * 10**-metric.digits else 0.0)


def _seeds(c: Contrast, metric: Metric, move: float) -> str:
    if math.isnan(move):
        return "; with networks of a single seed: others may differ"
    if abs(c.difference) < move:
        return f"; other seeds alone may move it by {metric.text(move)}"
    return ""
