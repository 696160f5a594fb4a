"""Paired comparisons of variants, grouped into families that share one error rate.

Two claims are kept apart: about these networks on other patients, and about the attention, whose
next training is another draw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from attnseg.study import power, statistics
from attnseg.study.failures import FailureBound, bound_failures, bound_mean
from attnseg.study.score_sheet import ScoreSheet
from attnseg.study.statistics import PatientValues
from attnseg.study.trainings import PairError, average_seeds, estimate_errors

NETWORKS, ATTENTION = "networks", "attention"  # the two claims
MIN_PATIENTS = 10  # for equivalence and non-inferiority
NOTHING_SHOWN = "no difference shown"

Ends = tuple[float, float]
UNKNOWN: Ends = (math.nan, math.nan)


@dataclass(frozen=True)
class Claim:
    """An inference about a difference. All numbers are in the metric's unit, NaN if unknown."""

    of: str  # `NETWORKS` or `ATTENTION`
    low: float  # ends of the interval for this comparison alone
    high: float
    simultaneous_low: float  # ends of the interval that holds for the whole family (Bonferroni)
    simultaneous_high: float
    p: float  # of no difference
    p_holm: float  # `p`, adjusted for the family
    low_90: float  # ends of the `1 - 2 alpha` interval for the family, of patients like those seen
    high_90: float
    equivalence_low: float  # the same, allowing for failures not seen: it decides equivalence
    equivalence_high: float
    detectable: float  # true difference that is shown with a power of 0.8; infinite if none is
    verdict: str  # `better`, `worse`, `equivalent` or `NOTHING_SHOWN`
    equivalent: bool  # whether the deciding interval lies within the margin
    noninferior: bool  # whether its worse end does

    @property
    def different(self) -> bool:
        """Whether a difference is shown: the corrected interval and the corrected test agree."""
        return self.verdict in ("better", "worse")


@dataclass(frozen=True)
class Contrast:
    """A variant minus a baseline, over patients. All numbers are in the metric's unit."""

    variant: str
    baseline: str
    what: str  # class name; empty if the comparison covers all classes
    patients: int  # number of patients with a value for both
    seeds: tuple[int, int]  # numbers of trainings of the variant and of the baseline
    difference: float  # mean
    networks: Claim  # about other patients
    attention: Claim  # about other patients and other trainings
    p_wilcoxon: float  # of Wilcoxon's test, adjusted for the family; informative only
    flips: float  # share of patient resamples in which the difference changes its sign
    failures: FailureBound  # patients in whom only the variant fails
    margin: float | None  # of equivalence; `None` if none was given
    family: int  # number of comparisons that share the error rate
    alpha: float  # error rate of the family

    @property
    def verdict(self) -> str:
        """The verdict on the attention."""
        return self.attention.verdict

    @property
    def different(self) -> bool:
        """Whether a difference between the attentions is shown."""
        return self.attention.different

    @property
    def equivalent(self) -> bool:
        """Whether the attentions are shown to differ by no more than the margin."""
        return self.attention.equivalent


@dataclass(frozen=True)
class PairedValues:
    """Values of two variants by patient (rows) and seed (columns), over the same patients.

    Each patient and each seed has a value.
    """

    variant: str
    baseline: str
    own: pd.DataFrame
    base: pd.DataFrame
    what: str = ""
    folds: pd.Series | None = None  # number of the fold that each patient was tested in

    @property
    def differences(self) -> PatientValues:
        """Differences `[patients]` of the means over seeds."""
        return (self.own.mean(axis=1) - self.base.mean(axis=1)).to_numpy(float)


def pair_values(sheet: ScoreSheet, variant: str, baseline: str, what: str = "") -> PairedValues:
    """Pair the values of a variant and a baseline, in the class `what` or in all classes.

    A patient counts as soon as either variant has a value (see `ScoreSheet.pair`); one whom either
    missed, under a profile that gives a miss no number, is left out.
    """
    own, base = sheet.pair(variant, baseline, [what] if what else None)
    folds = sheet.number_folds(variant, baseline)
    own_folds = None if folds is None else folds.reindex(own.index)
    own, base = (table.dropna(axis=1, how="all") for table in (own, base))
    return PairedValues(variant, baseline, own, base, what, own_folds)


@dataclass(frozen=True)
class Decision:
    """Settings of the decisions about a family of comparisons."""

    margin: float | None  # of equivalence, in the metric's unit
    up: bool = True  # whether higher is better
    worst: float | None = 0.0  # value of a failure; `None` for the worst one that was seen
    level: float = 0.95
    seed: int = 0  # of the resampling
    resamples: int = statistics.RESAMPLES
    detects: bool = True  # whether to work out which difference is found, which takes a while

    @property
    def alpha(self) -> float:
        """Error rate of the family."""
        return 1 - self.level


def contrast_family(pairs: Sequence[PairedValues], decision: Decision) -> list[Contrast]:
    """Compare pairs as one family: the chance of any false difference is at most `1 - level`.

    Each pair has at least one patient.
    """
    samples = [_Sample.of(pair, decision, len(pairs)) for pair in pairs]
    networks = statistics.holm([sample.p for sample in samples])
    # A comparison of single seeds cannot reject, but counts as one of the family.
    attention = statistics.holm([1.0 if math.isnan(s.p_both) else s.p_both for s in samples])
    wilcoxon = statistics.holm([statistics.wilcoxon(s.differences) for s in samples])
    adjusted = zip(samples, networks, attention, wilcoxon, strict=True)
    return [_contrast(*each, len(pairs), decision) for each in adjusted]


@dataclass(frozen=True)
class _Sample:
    """A pair of variants, reduced to the numbers that inferences are made from."""

    pair: PairedValues
    differences: PatientValues
    mean: float
    error: PairError
    p: float  # of the sign-flip test
    p_both: float  # the larger one of it and of the test that counts trainings, NaN for one seed
    alpha: float  # error rate of this comparison

    @classmethod
    def of(cls, pair: PairedValues, decision: Decision, family: int) -> "_Sample":
        d = pair.differences
        folds = None if pair.folds is None else pair.folds.to_numpy()
        error = estimate_errors(d, average_seeds(pair.own), average_seeds(pair.base), folds)
        p, mean = statistics.permutation_test(d, decision.seed, decision.resamples), float(d.mean())
        p_both = float(np.maximum(p, error.both.p_value(mean)))
        return cls(pair, d, mean, error, p, p_both, decision.alpha / family)


def _contrast(
    sample: _Sample,
    p_networks: float,
    p_attention: float,
    p_wilcoxon: float,
    family: int,
    decision: Decision,
) -> Contrast:
    pair, d = sample.pair, sample.differences
    lowest, highest = _find_extremes(pair, decision)
    bounds = bound_mean(d, lowest, highest, sample.alpha, decision.seed, decision.resamples)
    networks = _infer_networks(sample, p_networks, bounds, decision)
    attention = _infer_attention(sample, p_attention, bounds, networks, decision)
    losses, loss = (-d, -lowest) if decision.up else (d, highest)
    return Contrast(
        pair.variant,
        pair.baseline,
        pair.what,
        patients=len(d),
        seeds=(pair.own.shape[1], pair.base.shape[1]),
        difference=sample.mean,
        networks=_judge(networks, sample, decision),
        attention=_judge(attention, sample, decision),
        p_wilcoxon=p_wilcoxon,
        flips=statistics.flip_rate(d, decision.seed, decision.resamples),
        failures=bound_failures(losses, loss),
        margin=decision.margin,
        family=family,
        alpha=decision.alpha,
    )


def _find_extremes(pair: PairedValues, decision: Decision) -> Ends:
    """Return the differences in an average patient in whom one of the variants fails, ordered."""
    own, base = pair.own.mean(axis=1), pair.base.mean(axis=1)
    worst = decision.worst
    if worst is None:
        worst = min(own.min(), base.min()) if decision.up else max(own.max(), base.max())
    ends = (float(worst - base.mean()), float(own.mean() - worst))
    return min(ends), max(ends)


def _infer_networks(sample: _Sample, p_holm: float, bounds: Ends, decision: Decision) -> Claim:
    """Infer from the patients alone; the verdict is left open."""
    d, alpha = sample.differences, sample.alpha

    def interval(level: float) -> Ends:
        return statistics.bca_interval(d, level, decision.seed, decision.resamples)

    seen = _hull(interval(1 - 2 * alpha), statistics.student_interval(d, 1 - 2 * alpha))
    detectable = power.detect_networks(d, alpha) if decision.detects else math.nan
    ends = (interval(decision.level), interval(1 - alpha), seen, _hull(seen, bounds))
    return _open_claim(NETWORKS, ends, sample.p, p_holm, detectable)


def _infer_attention(
    sample: _Sample, p_holm: float, bounds: Ends, networks: Claim, decision: Decision
) -> Claim:
    """Infer from patients and trainings; the intervals are never narrower than the networks'."""
    mean, alpha, error = sample.mean, sample.alpha, sample.error

    def interval(level: float, inner: Ends) -> Ends:
        half = error.both.half_width(level)
        return _hull((mean - half, mean + half), inner)

    low, high = (mean - bounds[0], bounds[1] - mean)
    moved = error.trainings.half_width(1 - 2 * alpha)
    seen = interval(1 - 2 * alpha, (networks.low_90, networks.high_90))
    # The squares of both half widths add up (Zou and Donner, Statistics in Medicine 27, 2008).
    deciding = _hull(seen, (mean - math.hypot(low, moved), mean + math.hypot(high, moved)))
    ends = (
        interval(decision.level, (networks.low, networks.high)),
        interval(1 - alpha, (networks.simultaneous_low, networks.simultaneous_high)),
        seen,
        deciding,
    )
    pair, detectable = sample.pair, math.nan
    if decision.detects:
        detectable = power.detect_attention(pair.own, pair.base, networks.detectable, alpha)
    if math.isnan(sample.p_both):
        return _open_claim(ATTENTION, (UNKNOWN,) * 4, math.nan, math.nan, detectable)
    return _open_claim(ATTENTION, ends, sample.p_both, p_holm, detectable)


def _hull(one: Ends, other: Ends) -> Ends:
    return float(np.fmin(one[0], other[0])), float(np.fmax(one[1], other[1]))


def _open_claim(of: str, ends: Sequence[Ends], p: float, p_holm: float, detectable: float) -> Claim:
    alone, simultaneous, seen, deciding = ends
    return Claim(
        of,
        *alone,
        *simultaneous,
        p,
        p_holm,
        *seen,
        *deciding,
        detectable,
        verdict=NOTHING_SHOWN,
        equivalent=False,
        noninferior=False,
    )


def _judge(claim: Claim, sample: _Sample, decision: Decision) -> Claim:
    """Return the claim with its verdict."""
    excludes_zero = claim.simultaneous_low > 0 or claim.simultaneous_high < 0
    verdict = NOTHING_SHOWN
    if excludes_zero and claim.p_holm <= decision.alpha:
        verdict = "better" if (sample.mean > 0) == decision.up else "worse"
    if decision.margin is None or len(sample.differences) < MIN_PATIENTS:
        return replace(claim, verdict=verdict)
    low = claim.equivalence_low > -decision.margin
    high = claim.equivalence_high < decision.margin
    equivalent = low and high
    if equivalent and verdict == NOTHING_SHOWN:
        verdict = "equivalent"
    noninferior = low if decision.up else high
    return replace(claim, verdict=verdict, equivalent=equivalent, noninferior=noninferior)
