"""Confidence intervals of a run's averages over patients.

An average need not be a mean of patients: profiles weight cases and classes. Its error is that of
the jackknife, which leaves out one patient at a time. The interval is Student's on a scale without
ends, since averages near the end of their range have a skewed distribution.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

Values = NDArray[np.float64]
Ends = tuple[float, float]

LEVEL = 0.95  # coverage
MIN_PATIENTS = 3  # of two, an interval says nothing
UNKNOWN: Ends = (math.nan, math.nan)


def leave_out_patients(patients: Sequence[str]) -> Values:
    """Return weights of the cases `[patients + 1, cases]`: of all, then without each patient."""
    names, at = np.unique(np.asarray(patients), return_inverse=True)
    left_out = at[None] != np.arange(len(names))[:, None]
    all_cases = np.ones((1, len(patients)))
    # Without a patient of two, averages may be undefined, and no interval is given anyway.
    return np.concatenate([all_cases, left_out]) if len(names) >= MIN_PATIENTS else all_cases


def count_patients(known: NDArray[np.bool_], patients: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of patients with a defined value, given `[cases, columns]`."""
    _, at = np.unique(np.asarray(patients), return_inverse=True)
    counts = np.zeros((at.max() + 1, known.shape[1]), int)
    np.add.at(counts, at, known)
    return np.asarray((counts > 0).sum(0))


def interval_of_average(
    averages: Values, patients: int, bounds: Ends = (-math.inf, math.inf)
) -> Ends:
    """Return the confidence interval of an average over patients.

    It is Student's interval of the logit of a share, of the logarithm of a positive number, and of
    the number itself if it has no bound (delta method; A. Agresti, "Categorical Data Analysis",
    3rd ed., section 3.1). Where all patients have the same share, it is the bound that allows for
    patients not seen at either end (N. Gaffke, Mathematical Methods of Statistics 14, 2005).

    Args:
        averages: of all patients, then of those without each patient, `[patients + 1]`.
        patients: number of patients that have a value.
        bounds: smallest and largest value, infinite if there is none.

    Returns:
        Lower and upper end; NaN for fewer than three patients.
    """
    average, without = float(averages[0]), averages[1:]
    if patients < MIN_PATIENTS or np.isnan(averages).any():
        return UNKNOWN
    count = len(without)
    error = math.sqrt((count - 1) / count * float(np.sum((without - without.mean()) ** 2)))
    low, high = bounds
    if error < 1e-12:
        unseen = ((1 - LEVEL) / 2) ** (1 / patients)
        if math.isinf(low) or math.isinf(high):
            return UNKNOWN
        return low + (average - low) * unseen, high - (high - average) * unseen
    half = float(special.stdtrit(patients - 1, (1 + LEVEL) / 2)) * error
    above, below = average - low, high - average
    if math.isfinite(high) and above > 0 and below > 0:
        width = half * (high - low) / (above * below)
        odds = above / below * np.exp([-width, width])
        ends = [high - (high - low) / (1 + ratio) for ratio in odds]
        return float(ends[0]), float(ends[1])
    if math.isfinite(low) and math.isinf(high) and above > 0:
        width = half / above
        return low + above * math.exp(-width), low + above * math.exp(width)
    return average - half, average + half
