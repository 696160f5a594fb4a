"""Statistics of paired differences: one number per patient, variant minus baseline.

Patients are the unit everywhere: slices, cases and seeds of one patient are not independent.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Values = NDArray[np.float64]

DRAWS = 10_000
TAIL = 20  # least number of draws beyond an end of an interval
MOST = 200_000  # draws
LEAST = 1e-12  # tail
EXACT = 13  # up to so many patients every pattern of signs is tried: 2^13 are fewer than DRAWS
CHUNK = 2**21  # random numbers held at once
GRID = 2000  # quantiles of a standard deviation


def bca_interval(
    differences: Values,
    level: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
    expanded: bool = True,
) -> tuple[float, float]:
    """Return the bias-corrected and accelerated bootstrap interval of the mean.

    Of the mean only: the acceleration is that of a smooth statistic, and that of a median is not.
    Source: B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987), sections 2 and 6.

    As published it is too narrow for some dozens of patients: with 60, nominal 95 % covered 92.8 %
    of simulated Dice differences. `expanded` takes the tails that make a percentile interval as
    wide as that of Student's t (T. Hesterberg, "What Teachers Should Know About the Bootstrap", The
    American Statistician 69, 2015); taking them for BCa, too, is ours.

    Args:
        differences: `[patients]`.
        level: coverage, between 0 and 1.
        seed: of the draws.
        draws: at least; more are taken where the tails need them.
        expanded: false for the interval as published in 1987.

    Returns:
        Low and high end; NaN of fewer than two patients.
    """
    count = len(differences)
    if count < 2:
        return math.nan, math.nan
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return mean, mean
    tail = (1 - level) / 2
    if expanded:
        tail = _expanded(tail, count)
    needed = min(MOST, math.ceil(TAIL / max(tail, TAIL / MOST)))
    means = resampled_means(differences, seed, max(draws, needed))
    below = (np.mean(means < mean) + np.mean(means <= mean)) / 2
    bias = stats.norm.ppf(below)
    off = differences - mean
    acceleration = np.sum(off**3) / (6 * np.sum(off**2) ** 1.5)
    # By the tail, not its complement, which rounds to 1 with a handful of patients.
    shifted = bias + np.array([1, -1]) * stats.norm.ppf(tail)
    ends = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def _expanded(tail: float, count: int) -> float:
    student = stats.t.isf(tail, count - 1) * math.sqrt(count / (count - 1))
    return max(float(stats.norm.sf(student)), LEAST)


def resampled_means(values: Values, seed: int, draws: int = DRAWS) -> Values:
    """Draw as many patients as there are, with replacement; return the means.

    Args:
        values: `[patients]`, or `[patients, variants]` whose rows are drawn together.
        seed: of the draws; the same patients are drawn for the same seed and number of patients.
        draws: how many.

    Returns:
        `[draws]` or `[draws, variants]`.
    """
    rng, count = np.random.default_rng(seed), len(values)
    parts = [values[rng.integers(count, size=(n, count))].mean(1) for n in _chunks(draws, count)]
    return np.concatenate(parts)


def _chunks(draws: int, count: int) -> Iterator[int]:
    size = max(1, CHUNK // count)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def wilcoxon(differences: Values) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 if all differences are 0.

    Patients without a difference are left out (Wilcoxon, Biometrics Bulletin 1, 1945).

    Args:
        differences: `[patients]`.
    """
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def permutation_test(differences: Values, seed: int = 0, draws: int = DRAWS) -> float:
    """Return the two-sided p-value of the mean when the sign of every difference is a coin toss.

    Valid at any number of patients if the two variants could be exchanged. Exact up to 13 patients;
    beyond, `(hits + 1) / (draws + 1)` of random signs (Phipson and Smyth, 2010), never 0.

    Args:
        differences: `[patients]`.
        seed: of the draws.
        draws: of random signs.
    """
    count = len(differences)
    # Equal sums must not differ by rounding.
    least = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    if count <= EXACT:
        patterns = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ differences) >= least))
    rng, hits = np.random.default_rng(seed), 0
    for n in _chunks(draws, count):
        signs = 2 * rng.integers(2, size=(n, count), dtype=np.int8) - 1
        hits += int(np.sum(np.abs(signs @ differences) >= least))
    return (hits + 1) / (draws + 1)


def smallest_p(count: int) -> float:
    """Return the smallest p-value that `permutation_test` can have with so many patients."""
    return 2.0 ** (1 - count) if count <= EXACT else 1 / (DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several, in the same order.

    Reject where the adjusted value is at most alpha: the chance of any false rejection is at most
    alpha (S. Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


@dataclass(frozen=True)
class Equivalence:
    """Outcome of two one-sided tests.

    Attributes:
        p: equivalent at alpha if at most alpha.
        low: end of the `1 - 2 alpha` interval, inside the margin exactly if `p` is below alpha.
        high: the other end.
    """

    p: float
    low: float
    high: float


def tost(differences: Values, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test whether the mean lies between `-margin` and `margin`, by two one-sided paired t-tests.

    Source: D. J. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987).

    Args:
        differences: `[patients]`.
        margin: above 0, in the metric's unit.
        alpha: 0.05 gives the 90 % interval.

    Returns:
        Of fewer than two patients, p is 1 and the interval NaN.
    """
    count = len(differences)
    if count < 2:
        return Equivalence(1.0, math.nan, math.nan)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return Equivalence(0.0 if abs(mean) < margin else 1.0, mean, mean)
    p = float(stats.t.sf((margin - abs(mean)) / error, count - 1))
    half = float(stats.t.isf(alpha, count - 1)) * error
    return Equivalence(p, mean - half, mean + half)


def smallest_detectable(differences: Values, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest true mean that a paired t-test of such differences would mostly find.

    Args:
        differences: `[patients]`; their standard deviation is taken for the true one.
        power: chance of finding it.
        alpha: of the two-sided test.

    Returns:
        In the metric's unit; NaN of fewer than two patients.
    """
    count = len(differences)
    if count < 2:
        return math.nan
    critical = float(stats.t.isf(alpha / 2, count - 1))
    # The noncentral t distribution as normals over quantiles of the standard deviation: scipy's own
    # gives NaN far out with few degrees of freedom.
    quantiles = (np.arange(GRID) + 0.5) / GRID
    limits = critical * np.sqrt(stats.chi2.ppf(quantiles, count - 1) / (count - 1))

    def lacking(shift: float) -> float:
        found = stats.norm.sf(limits - shift) + stats.norm.cdf(-limits - shift)
        return float(np.mean(found)) - power

    above = critical
    while lacking(above) < 0:
        above *= 2
    shift = optimize.brentq(lacking, 0, above)
    return float(shift * differences.std(ddof=1) / math.sqrt(count))


@dataclass(frozen=True)
class Components:
    """Variances of a score, in the metric's unit squared.

    Attributes:
        patients: between patients.
        seeds: between seeds, of the mean over all patients: it does not shrink with patients.
        rest: of a patient under a seed beyond both.
    """

    patients: float
    seeds: float
    rest: float


def seed_variance(values: Values) -> Components:
    """Divide the variance of a variant's scores between patients and seeds.

    Method of moments for two crossed random factors without replication; what comes out negative is
    0 (Searle, Casella and McCulloch, "Variance Components", 1992, chapter 4).

    Args:
        values: `[patients, seeds]`; patients with an undefined value are left out.

    Returns:
        NaN of fewer than two complete patients or two seeds.
    """
    complete = values[~np.isnan(values).any(1)]
    patients, seeds = complete.shape
    if patients < 2 or seeds < 2:
        return Components(math.nan, math.nan, math.nan)
    by_patient, by_seed = complete.mean(1), complete.mean(0)
    rest = complete - by_patient[:, None] - by_seed + complete.mean()
    noise = float(np.sum(rest**2)) / ((patients - 1) * (seeds - 1))
    return Components(
        max(0.0, float(by_patient.var(ddof=1)) - noise / seeds),
        max(0.0, float(by_seed.var(ddof=1)) - noise / patients),
        noise,
    )


def flip_rate(differences: Values, seed: int = 0) -> float:
    """Return how often the mean changes sign when the patients are drawn anew.

    Args:
        differences: `[patients]`.
        seed: of the draws.

    Returns:
        Share of the draws, a mean of exactly 0 counting half; 0.5 if the mean itself is 0; NaN of
        fewer than two patients.
    """
    if len(differences) < 2:
        return math.nan
    signs = np.sign(resampled_means(differences, seed)) * np.sign(differences.mean())
    return float(np.mean((1 - signs) / 2))


def ranking_flip_rate(values: Values, seed: int = 0) -> float:
    """Return how often another variant has the highest mean when the patients are drawn anew.

    Args:
        values: `[patients, variants]`, higher is better.
        seed: of the draws.

    Returns:
        Share of the draws; where several share the first place, each has its part of it.
    """
    means = resampled_means(values, seed)
    first = means == means.max(1, keepdims=True)
    shares = first / first.sum(1, keepdims=True)
    return 1 - float(shares[:, int(values.mean(0).argmax())].mean())
