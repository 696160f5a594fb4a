"""Bounds of a mean that hold although failures of single patients are rare.

In 60 patients none of whom failed, up to 5 % of all patients may fail: no interval made of the seen
values alone can know. The bounds here add one patient who was not seen, at the worst value.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from attnseg.study.statistics import CHUNK, RESAMPLES, TAIL_RESAMPLES, PatientValues


@dataclass(frozen=True)
class FailureBound:
    """Patients in whom only the variant fails, and the share of them that cannot be excluded."""

    seen: int  # patients that lose at least half of `loss` against the baseline
    patients: int
    upper: float  # 95 % upper bound of their share (Clopper and Pearson, Biometrika 26, 1934)
    loss: float  # what the mean patient loses by a failure, in the metric's unit

    @property
    def effect(self) -> float:
        """Return the change of the mean, were there as many failures as cannot be excluded."""
        return self.upper * self.loss


def bound_failures(losses: PatientValues, loss: float, level: float = 0.95) -> FailureBound:
    """Count failures among the losses `[patients]` against the baseline and bound their share."""
    seen, patients = int(np.sum(losses >= loss / 2)) if loss > 0 else 0, len(losses)
    upper = 1.0 if seen == patients else float(stats.beta.ppf(level, seen + 1, patients - seen))
    return FailureBound(seen, patients, upper, loss)


def bound_mean(
    values: PatientValues,
    lowest: float,
    highest: float,
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Return bounds of the mean of values `[patients]`, each exceeded with a chance of `alpha`.

    The lower bound is the `alpha` quantile of the mean under random weights (uniform over the
    simplex) of the values and of one more at `lowest`; the upper one likewise. It holds for any
    number of patients and any distribution above `lowest`: it was proved for some and never found
    to fail (N. Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean
    of a nonnegative variable", Mathematical Methods of Statistics 14, 2005; E. Learned-Miller and
    P. Thomas, "A new confidence interval for the mean of a bounded random variable", 2019). For
    equal values it is that of Clopper and Pearson.

    Args:
        values: `[patients]`.
        lowest: smallest value that a patient can have.
        highest: largest value that a patient can have.
        alpha: chance of each side.
        seed: of the weights.
        resamples: lower bound of the number of weightings.
    """
    count = len(values)
    if count < 1:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    draws = max(resamples, math.ceil(TAIL_RESAMPLES / alpha))
    step = max(1, CHUNK // (count + 1))
    lows, highs = [], []
    for start in range(0, draws, step):
        weights = rng.standard_exponential((min(step, draws - start), count + 1))
        seen, total = weights[:, :count] @ values, weights.sum(1)
        lows.append((seen + weights[:, count] * min(lowest, values.min())) / total)
        highs.append((seen + weights[:, count] * max(highest, values.max())) / total)
    low = float(np.quantile(np.concatenate(lows), alpha))
    return low, float(np.quantile(np.concatenate(highs), 1 - alpha))
