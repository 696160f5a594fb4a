"""Variants held against each other: a family of paired comparisons that share one error rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from attnseg.study import statistics
from attnseg.study.statistics import Values


@dataclass(frozen=True)
class Contrast:
    """A variant minus a baseline, over patients. All numbers are in the metric's unit.

    Attributes:
        variant: name.
        baseline: name.
        what: the class, if it is of one class only.
        patients: that both have a value for.
        difference: mean.
        low: end of the interval at the level asked for, of this comparison alone.
        high: the other end.
        simultaneous_low: end of the interval that holds for the whole family at once (Bonferroni).
        simultaneous_high: the other end.
        p: of the sign-flip permutation test.
        p_holm: the same, adjusted for the family.
        p_wilcoxon: of Wilcoxon's test, adjusted for the family; beside the others, decides nothing.
        equivalence_low: end of the `1 - 2 alpha` interval of the paired t-test.
        equivalence_high: the other end.
        equivalence_p: of the two one-sided tests, adjusted for the family.
        detectable: smallest difference found with 80 % power at the family's level; infinite where
            there are too few patients for any.
        flips: share of resamples of the patients in which the difference changes sign.
        family: number of comparisons that the error rate is shared among.
        alpha: the error rate.
    """

    variant: str
    baseline: str
    what: str
    patients: int
    difference: float
    low: float
    high: float
    simultaneous_low: float
    simultaneous_high: float
    p: float
    p_holm: float
    p_wilcoxon: float
    equivalence_low: float
    equivalence_high: float
    equivalence_p: float
    detectable: float
    flips: float
    family: int
    alpha: float

    @property
    def different(self) -> bool:
        """Whether a difference is shown: the corrected interval and the corrected test agree.

        The interval says how much, but covers too little with a handful of patients; the
        permutation test keeps its error rate with any number.
        """
        excludes_zero = self.simultaneous_low > 0 or self.simultaneous_high < 0
        return excludes_zero and self.p_holm <= self.alpha

    @property
    def equivalent(self) -> bool:
        """Whether the difference is shown to be within the margin."""
        return self.equivalence_p <= self.alpha


@dataclass(frozen=True)
class Pair:
    """Values of two variants for the same patients, `[patients]` each."""

    variant: str
    baseline: str
    differences: Values
    what: str = ""


def paired(table: pd.DataFrame, variant: str, baseline: str, what: str = "") -> Pair:
    """Subtract two columns, patient by patient; those without both values are left out.

    Args:
        table: values by patient and variant.
        variant: column.
        baseline: column that is subtracted.
        what: the class, if the values are of one class only.
    """
    differences = (table[variant] - table[baseline]).dropna().to_numpy(float)
    return Pair(variant, baseline, differences, what)


def contrasts(
    pairs: Sequence[Pair], margin: float, level: float = 0.95, seed: int = 0
) -> list[Contrast]:
    """Compare pairs as one family: the chance of any false difference is at most `1 - level`.

    Args:
        pairs: the family.
        margin: differences up to here do not matter, in the metric's unit.
        level: of the intervals; tests are at `1 - level`.
        seed: of resampling.
    """
    alpha, family = 1 - level, len(pairs)
    differences = [pair.differences for pair in pairs]
    p = [statistics.permutation_test(d, seed) for d in differences]
    p_holm = statistics.holm(p)
    p_wilcoxon = statistics.holm([statistics.wilcoxon(d) for d in differences])
    tests = [statistics.tost(d, margin, alpha) for d in differences]
    p_equivalence = statistics.holm([test.p for test in tests])
    found = []
    for i, (pair, d) in enumerate(zip(pairs, differences, strict=True)):
        low, high = statistics.bca_interval(d, level, seed)
        simultaneous = statistics.bca_interval(d, 1 - alpha / family, seed)
        found.append(
            Contrast(
                pair.variant,
                pair.baseline,
                pair.what,
                patients=len(d),
                difference=float(d.mean()),
                low=low,
                high=high,
                simultaneous_low=simultaneous[0],
                simultaneous_high=simultaneous[1],
                p=p[i],
                p_holm=p_holm[i],
                p_wilcoxon=p_wilcoxon[i],
                equivalence_low=tests[i].low,
                equivalence_high=tests[i].high,
                equivalence_p=p_equivalence[i],
                detectable=detectable(d, alpha / family),
                flips=statistics.flip_rate(d, seed),
                family=family,
                alpha=alpha,
            )
        )
    return found


def detectable(differences: Values, alpha: float) -> float:
    """Return the smallest difference that could have been shown; infinite if none could."""
    if statistics.smallest_p(len(differences)) > alpha:
        return math.inf
    return statistics.smallest_detectable(differences, alpha=alpha)
