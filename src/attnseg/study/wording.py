"""Counts, differences, intervals and p-values as sentences and tables show them."""

import math

from attnseg.study.metric import ComparedMetric

SMALLEST_END = 1e-12  # ends of intervals below it are rounding errors of 0


def count_text(count: int, noun: str) -> str:
    """Return a number of things, such as `1 patient` or `2 patients`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def p_value_text(p: float) -> str:
    """Return a p-value as tables show it."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def difference_text(value: float, metric: ComparedMetric) -> str:
    """Return a difference without the sign of a negative zero."""
    return metric.text(value if abs(value) >= 0.5 * 10**-metric.digits else 0.0)


def interval_text(low: float, high: float, metric: ComparedMetric) -> str:
    """Return an interval of a difference.

    An end that is not 0 but would read as 0 has more digits, so that a reader sees on which side of
    0 it lies.
    """
    return "-" if low != low else f"{_end_text(low, metric)} to {_end_text(high, metric)}"


def _end_text(end: float, metric: ComparedMetric) -> str:
    if float(metric.text(end)) or abs(end) < SMALLEST_END:
        return difference_text(end, metric)
    return f"{end:.{math.ceil(-math.log10(abs(end)))}f}"
