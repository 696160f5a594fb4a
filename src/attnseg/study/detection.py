"""Missed and spurious classes: image-level detection beside the quality of the masks.

A class of a case is missed if it is there and not predicted, and spurious if it is not there and
predicted. Both are counted over all runs of a variant. Two variants are compared patient by
patient: a patient speaks for the variant that makes the error in fewer of its cases, classes and
runs. With one case, class and run each, the test is McNemar's, exact (Q. McNemar, Psychometrika 12,
1947); otherwise it is the sign test, of which McNemar's is a case.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from attnseg.study.score_sheet import ScoreSheet
from attnseg.study.statistics import holm
from attnseg.study.wording import count_text, p_value_text


@dataclass(frozen=True)
class ErrorCount:
    """One kind of error of one variant, and its test against the baseline."""

    variant: str
    error: str  # `missed` or `spurious`
    count: int  # of cases, classes and runs with the error
    of: int  # cases, classes and runs in which it was possible
    more: int  # patients in whom the variant makes it more often than its baseline
    fewer: int  # patients in whom it makes it less often
    p: float  # of the exact test, adjusted by Holm for all of the table; NaN for a baseline


def count_errors(sheet: ScoreSheet, bases: Mapping[str, str]) -> list[ErrorCount]:
    """Count the errors of each variant; nothing if the runs have not recorded voxels."""
    errors = {}
    for name, runs in sheet.runs.items():
        numbers = [number for _, number in runs]
        truth, predicted = sheet.truth[numbers], sheet.predicted[numbers]
        known = predicted.notna()
        errors[name, "missed"] = (predicted == 0).where(known & (truth > 0))
        errors[name, "spurious"] = (predicted > 0).where(known & (truth == 0))
    if not any(made.notna().any(axis=None) for made in errors.values()):
        return []
    shares = {
        key: made.astype(float).groupby(level="patient").mean().mean(axis=1)
        for key, made in errors.items()
    }
    tests = {
        (name, error): compare_patients(share, shares[bases[name], error])
        for (name, error), share in shares.items()
        if name in bases
    }
    p = dict(zip(tests, holm([p for *_, p in tests.values()]), strict=True))
    return [
        ErrorCount(
            name,
            error,
            int(made.to_numpy(float, na_value=0).sum()),
            int(made.notna().to_numpy().sum()),
            *tests.get((name, error), (0, 0))[:2],
            p.get((name, error), math.nan),
        )
        for (name, error), made in errors.items()
    ]


def compare_patients(own: pd.Series, base: pd.Series) -> tuple[int, int, float]:
    """Return in how many patients one share is larger, the other is, and the exact p-value."""
    difference = (own - base).dropna()
    more, fewer = int((difference > 1e-12).sum()), int((difference < -1e-12).sum())
    p = float(stats.binomtest(more, more + fewer).pvalue) if more + fewer else 1.0
    return more, fewer, p


def doubt_errors(errors: Sequence[ErrorCount], bases: Mapping[str, str], alpha: float) -> list[str]:
    """Return a sentence for each variant that makes more or fewer errors than its baseline."""
    doubts = []
    for e in errors:
        if e.p <= alpha:
            verb = "misses" if e.error == "missed" else "predicts spurious"
            doubts.append(
                f"{e.variant} {verb} classes more often than {bases[e.variant]} in "
                f"{count_text(e.more, 'patient')} and less often in {e.fewer} (exact McNemar test, "
                f"Holm p {p_value_text(e.p)}): a mean does not show that"
            )
    return doubts
