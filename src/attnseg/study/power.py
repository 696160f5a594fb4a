"""Power of the decisions of a comparison: which differences they find, and from how many draws.

Patients, seeds and their interaction are taken as normally distributed.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special, stats

from attnseg.study import statistics
from attnseg.study.statistics import EXACT_PATIENTS, PatientValues

POWER = 0.8
DRAWS = 4000  # simulated studies
FLIPPED = 1000  # the same, where all patterns of signs are tried


@dataclass(frozen=True)
class Variation:
    """Standard deviations of a comparison of two variants, in the metric's unit."""

    patients: float  # of the true differences of patients
    seeds: float  # of a training's effect on the mean over all patients
    rest: float  # of a training's effect on a single patient

    @classmethod
    def of(cls, own: pd.DataFrame, base: pd.DataFrame) -> "Variation":
        """Estimate the deviations from values by patient (rows) and seed (columns).

        Those of seeds are averaged over both variants. NaN for fewer than two patients or seeds.
        """
        found = [statistics.seed_variance(table.to_numpy(float)) for table in (own, base)]
        seeds, rest = (np.mean([getattr(v, of) for v in found]) for of in ("seeds", "rest"))
        differences = (own.mean(axis=1) - base.mean(axis=1)).var(ddof=1)
        noise = sum(v.rest / table.shape[1] for v, table in zip(found, (own, base), strict=True))
        return cls(*np.sqrt([np.maximum(differences - noise, 0), seeds, rest]).tolist())


def detect_networks(differences: PatientValues, alpha: float) -> float:
    """Return the true mean difference of these networks that is found with a power of 0.8.

    The standard deviation of the differences `[patients]` is taken as the true one. The result is
    infinite if no difference can be found.
    """
    count = len(differences)
    if count < 2 or statistics.smallest_p(count) > alpha:
        return math.inf
    if count > EXACT_PATIENTS:
        return statistics.smallest_detectable(differences, POWER, alpha)
    return _detectable_by_flips(count, alpha) * float(differences.std(ddof=1))


@lru_cache
def _detectable_by_flips(count: int, alpha: float) -> float:
    """Return the detectable mean of `count` patients in standard deviations, by simulation.

    Of so few patients, both the sign-flip test and the interval decide.
    """
    draws = np.random.default_rng(0).normal(size=(FLIPPED, count))
    patterns = np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1
    signs = 1.0 - 2 * patterns
    flipped, ones = draws @ signs.T, signs.sum(1)
    limit = stats.t.isf(alpha / 2, count - 1) * draws.std(1, ddof=1) * math.sqrt(count)

    def excess_power(shift: float) -> float:
        total = np.abs(draws.sum(1) + shift * count)
        extreme = np.abs(flipped + shift * ones) >= total[:, None] - 1e-9
        return float(np.mean((extreme.mean(1) <= alpha) & (total > limit))) - POWER

    upper = 1.0
    while excess_power(upper) < 0:
        upper *= 2
    return float(optimize.bisect(excess_power, 0, upper, xtol=0.005))


def detect_attention(own: pd.DataFrame, base: pd.DataFrame, networks: float, alpha: float) -> float:
    """Return the true difference between attentions that is found with a power of 0.8.

    The variation of the values by patient (rows) and seed (columns) is taken as the true one;
    `networks` is what is found between the networks. The result is infinite if no difference can be
    found, as with a single seed.
    """
    variation = Variation.of(own, base)
    if math.isnan(variation.patients) or math.isinf(networks):
        return math.inf
    seeds = min(own.shape[1], base.shape[1])
    return max(networks, detectable_difference(variation, len(own), seeds, alpha))


def detectable_difference(
    variation: Variation, patients: int, seeds: int, alpha: float = 0.05, power: float = POWER
) -> float:
    """Return the true difference that is found with the given power by so many draws of each."""
    scale, limit = _draw_limits(variation, patients, seeds, alpha / 2)

    def excess_power(difference: float) -> float:
        return _exceed(scale, limit, difference) - power

    upper = variation.patients + variation.seeds + variation.rest
    if upper == 0:
        return 0.0
    while excess_power(upper) < 0:
        upper *= 2
    return float(optimize.brentq(excess_power, 0, upper, rtol=1e-3))


def power_to_differ(
    variation: Variation, patients: int, seeds: int, difference: float, alpha: float = 0.05
) -> float:
    """Return the chance that a true difference between attentions is shown."""
    scale, limit = _draw_limits(variation, patients, seeds, alpha / 2)
    return _exceed(scale, limit, difference)


def _exceed(scale: float, limits: NDArray[np.float64], difference: float) -> float:
    above, below = (difference - limits) / scale, (-limits - difference) / scale
    return float(np.mean(special.ndtr(above) + special.ndtr(below)))


def power_to_equal(
    variation: Variation,
    patients: int,
    seeds: int,
    margin: float,
    loss: float,
    alpha: float = 0.05,
) -> float:
    """Return the chance that a variant without any difference is shown to be non-inferior.

    `loss` is what a patient loses by a failure; none fails.
    """
    spread = math.hypot(variation.patients, variation.rest * math.sqrt(2 / seeds))
    error = max(spread / math.sqrt(patients), 1e-9 * loss)
    # The weight of the patient who was not seen is nearly exponential.
    unseen = loss / (patients + 1)
    allowed = float(stats.exponnorm.isf(alpha, unseen / error, scale=error))
    scale, limit = _draw_limits(variation, patients, seeds, alpha)
    _, moved = _draw_limits(variation, patients, seeds, alpha, trainings_only=True)
    needed = np.maximum(limit, np.hypot(allowed, moved))
    return float(np.mean(stats.norm.cdf((margin - needed) / scale)))


def _draw_limits(
    variation: Variation, patients: int, seeds: int, tail: float, trainings_only: bool = False
) -> tuple[float, NDArray[np.float64]]:
    """Simulate studies; return the deviation of their difference and half of each one's interval.

    The interval is that of `trainings.estimate_errors`.
    """
    rng = np.random.default_rng(0)
    noise = variation.rest**2 / (patients * seeds)  # of one variant; in every variance below
    by_patients = variation.patients**2 / patients + 2 * noise
    by_seeds = variation.seeds**2 / seeds + noise
    degrees = np.array([patients - 1, seeds - 1, seeds - 1])
    truth = np.array([0 if trainings_only else by_patients, by_seeds, by_seeds])
    drawn = truth * rng.chisquare(degrees, (DRAWS, 3)) / degrees
    total = np.maximum(drawn.sum(1), np.finfo(float).tiny)
    freedom = 1 / ((drawn / total[:, None]) ** 2 / degrees).sum(1)
    scale = math.sqrt(by_patients + 2 * by_seeds - 2 * noise)
    return scale, special.stdtrit(freedom, 1 - tail) * np.sqrt(total)
