"""Uncertainty of a difference between attentions, each of which was trained several times.

A training is one draw: another seed gives another network, whatever the number of patients. So the
variance of a difference is that over patients plus that over trainings of both variants:

    SE^2 = var(d) / n + var(own seed means) / S_own + var(base seed means) / S_base

with Satterthwaite's degrees of freedom (F. E. Satterthwaite, "An approximate distribution of
estimates of variance components", Biometrics Bulletin 2, 1946). The interaction of patient and seed
is part of all three terms, so the result is slightly too large, never too small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from attnseg.study.statistics import PatientValues


@dataclass(frozen=True)
class SampledError:
    """Standard error of a difference, with its degrees of freedom; NaN if it is unknown."""

    error: float
    degrees: float

    def half_width(self, level: float) -> float:
        """Return half the width of the two-sided interval."""
        if self.error == 0:
            return 0.0
        return float(stats.t.isf((1 - level) / 2, self.degrees)) * self.error

    def p_value(self, difference: float) -> float:
        """Return the two-sided p-value of a difference of 0."""
        if self.error == 0:
            return 1.0 if difference == 0 else 0.0
        return float(2 * stats.t.sf(abs(difference) / self.error, self.degrees))


def average_seeds(values: pd.DataFrame) -> PatientValues:
    """Return the mean of each seed over the patients (rows) that have a value of all, `[seeds]`.

    Seeds are thus compared over the same patients; if no patient has all, over their own.
    """
    complete = values.dropna()
    return np.asarray((values if complete.empty else complete).mean())


@dataclass(frozen=True)
class PairError:
    """Errors of a difference: of its trainings alone, and of patients and trainings."""

    trainings: SampledError
    both: SampledError


def estimate_errors(
    differences: PatientValues,
    own: PatientValues,
    base: PatientValues,
    folds: PatientValues | None = None,
) -> PairError:
    """Estimate the errors of the mean difference over other patients and other trainings.

    The folds of a cross-validation share most of their training patients. Where the differences
    `[patients]` are of several folds, their part is therefore at least the corrected variance of
    the folds' means, (1 / K + 1 / (K - 1)) var (C. Nadeau and Y. Bengio, "Inference for the
    generalization error", Machine Learning 52, 2003, equation 10).

    Args:
        differences: `[patients]`, averaged over seeds.
        own: means of the variant's seeds, `[seeds]`.
        base: means of the baseline's seeds.
        folds: number of the fold of each patient; `None` if there was one division.
    """
    if len(differences) < 2 or min(len(own), len(base)) < 2:
        unknown = SampledError(math.nan, math.nan)
        return PairError(unknown, unknown)
    patients = (float(differences.var(ddof=1)) / len(differences), len(differences) - 1)
    if folds is not None and (count := len(set(folds.tolist()))) > 1:
        means = pd.Series(differences).groupby(folds).mean()
        corrected = (1 / count + 1 / (count - 1)) * float(means.var(ddof=1))
        patients = max(patients, (corrected, count - 1))
    seeds = [(float(means.var(ddof=1)) / len(means), len(means) - 1) for means in (own, base)]
    return PairError(add_variances(seeds), add_variances([patients, *seeds]))


def add_variances(parts: Sequence[tuple[float, int]]) -> SampledError:
    """Add variances, each with its degrees of freedom, by Satterthwaite's formula."""
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return SampledError(0.0, math.inf)
    # Shares keep the squares of very small variances from vanishing.
    spread = sum((variance / total) ** 2 / degrees for variance, degrees in parts)
    return SampledError(math.sqrt(total), 1 / spread)


def deviate_seeds(means: PatientValues, level: float = 0.95) -> tuple[float, float, float]:
    """Return the standard deviation of the seeds' means `[seeds]`, with its chi-square interval.

    It includes the noise of a finite number of patients. All are NaN for fewer than two seeds.
    """
    degrees = len(means) - 1
    if degrees < 1:
        return math.nan, math.nan, math.nan
    deviation = float(means.std(ddof=1))
    low, high = (float(stats.chi2.ppf((1 + side) / 2, degrees)) for side in (level, -level))
    return deviation, deviation * math.sqrt(degrees / low), deviation * math.sqrt(degrees / high)
