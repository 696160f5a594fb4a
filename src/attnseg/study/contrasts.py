"""Paired comparisons of variants, grouped into families that share one error rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnseg.study import statistics
from attnseg.study.score_sheet import ScoreSheet
from attnseg.study.statistics import PatientValues


@dataclass(frozen=True)
class Contrast:
    """A variant minus a baseline, over patients. All numbers are in the metric's unit."""

    variant: str
    baseline: str
    what: str  # class name; empty if the comparison covers all classes
    patients: int  # number of patients with a value for both
    difference: float  # mean
    low: float  # ends of the interval for this comparison alone
    high: float
    simultaneous_low: float  # ends of the interval that holds for the whole family (Bonferroni)
    simultaneous_high: float
    p: float  # of the sign-flip permutation test
    p_holm: float  # `p`, adjusted for the family
    p_wilcoxon: float  # of Wilcoxon's test, adjusted for the family; informative only
    equivalence_low: float  # ends of the `1 - 2 alpha` interval of the paired t-test
    equivalence_high: float
    equivalence_p: float  # of the two one-sided tests, adjusted for the family
    # Smallest difference detected with 80 % power at the family's level; infinite if there are too
    # few patients to show any difference.
    detectable: float
    flips: float  # share of patient resamples in which the difference changes its sign
    family: int  # number of comparisons that share the error rate
    alpha: float  # error rate of the family

    @property
    def different(self) -> bool:
        """Whether a difference is shown: the corrected interval and the corrected test agree.

        The interval tells the size of the difference but is too narrow for a handful of patients;
        the permutation test keeps its error rate for any number of patients.
        """
        excludes_zero = self.simultaneous_low > 0 or self.simultaneous_high < 0
        return excludes_zero and self.p_holm <= self.alpha

    @property
    def equivalent(self) -> bool:
        """Whether the difference is shown to lie within the margin."""
        return self.equivalence_p <= self.alpha


@dataclass(frozen=True)
class PairedDifferences:
    """Differences `[patients]` between two variants, one per patient."""

    variant: str
    baseline: str
    differences: PatientValues
    what: str = ""


def subtract_baseline(
    sheet: ScoreSheet, variant: str, baseline: str, what: str = ""
) -> PairedDifferences:
    """Subtract a baseline's patients from a variant's, in the class `what` or in all classes.

    A patient counts as soon as either variant has a value (see `ScoreSheet.pair`); one whom either
    missed, under a profile that gives a miss no number, is left out.
    """
    own, base = sheet.pair(variant, baseline, [what] if what else None)
    differences = (own.mean(axis=1) - base.mean(axis=1)).dropna().to_numpy(float)
    return PairedDifferences(variant, baseline, differences, what)


def contrast_family(
    pairs: Sequence[PairedDifferences], margin: float, level: float = 0.95, seed: int = 0
) -> list[Contrast]:
    """Compare pairs as one family: the chance of any false difference is at most `1 - level`.

    Each pair has at least one patient. The margin of equivalence is in the metric's unit.
    """
    alpha, family = 1 - level, len(pairs)
    differences = [pair.differences for pair in pairs]
    p = [statistics.permutation_test(d, seed) for d in differences]
    p_holm = statistics.holm(p)
    p_wilcoxon = statistics.holm([statistics.wilcoxon(d) for d in differences])
    tests = [statistics.tost(d, margin, alpha) for d in differences]
    p_equivalence = statistics.holm([test.p for test in tests])
    contrasts = []
    for i, (pair, d) in enumerate(zip(pairs, differences, strict=True)):
        low, high = statistics.bca_interval(d, level, seed)
        simultaneous_low, simultaneous_high = statistics.bca_interval(d, 1 - alpha / family, seed)
        contrasts.append(
            Contrast(
                pair.variant,
                pair.baseline,
                pair.what,
                patients=len(d),
                difference=float(d.mean()),
                low=low,
                high=high,
                simultaneous_low=simultaneous_low,
                simultaneous_high=simultaneous_high,
                p=p[i],
                p_holm=p_holm[i],
                p_wilcoxon=p_wilcoxon[i],
                equivalence_low=tests[i].low,
                equivalence_high=tests[i].high,
                equivalence_p=p_equivalence[i],
                detectable=_detectable_difference(d, alpha / family),
                flips=statistics.flip_rate(d, seed),
                family=family,
                alpha=alpha,
            )
        )
    return contrasts


def _detectable_difference(differences: PatientValues, alpha: float) -> float:
    if statistics.smallest_p(len(differences)) > alpha:
        return math.inf
    return statistics.smallest_detectable(differences, alpha=alpha)
