"""Statistics by hand, by a second road, and in the long run."""

import math

import numpy as np
import pytest
from scipy import stats

from attnseg.study import statistics as st
from attnseg.study.contrasts import Decision, contrast_family
from tests.study.folders import make_pair

NORMAL = np.random.default_rng(1).normal(0.3, 1, 40)
SKEWED = np.random.default_rng(2).exponential(1, 30) - 0.8


def bca_by_formula(values, level, seed, resamples):
    """Efron's equations 2.3 and 6.6, written out for the mean."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means, mean = values[drawn].mean(1), values.mean()
    bias = stats.norm.ppf((np.mean(means < mean) + np.mean(means <= mean)) / 2)
    off = values - mean
    acceleration = np.sum(off**3) / (6 * np.sum(off**2) ** 1.5)
    shifted = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    return np.quantile(means, stats.norm.cdf(bias + shifted / (1 - acceleration * shifted)))


@pytest.mark.parametrize("values", [NORMAL, SKEWED, SKEWED[:8]], ids=["normal", "skewed", "few"])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_bca_agrees_with_the_formula(values, level):
    own = st.bca_interval(values, level, seed=0, resamples=60_000, expanded=False)
    same_draws = bca_by_formula(values, level, 0, 60_000)
    np.testing.assert_allclose(own, same_draws, rtol=1e-9)
    other_draws = bca_by_formula(values, level, 5, 60_000)
    np.testing.assert_allclose(own, other_draws, atol=0.03 * np.ptp(other_draws))


def test_resampled_means_draw_the_patients_of_all_variants_together():
    means = st.resample_means(np.stack([NORMAL, 2 * NORMAL], 1), seed=3, resamples=500)
    assert means.shape == (500, 2)
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
    np.testing.assert_allclose(means[:, 0], st.resample_means(NORMAL, seed=3, resamples=500))
    assert len(np.unique(means[:, 0])) == 500


def test_expanded_interval_is_as_wide_as_that_of_student():
    values = np.concatenate([NORMAL[:6], -NORMAL[:6]])
    low, high = st.bca_interval(values, resamples=100_000)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert high - low == pytest.approx(2 * stats.t.isf(0.025, len(values) - 1) * error, rel=0.1)
    narrow = st.bca_interval(values, resamples=100_000, expanded=False)
    assert low < narrow[0] < narrow[1] < high


def test_bca_of_two_and_three_patients_stays_within_what_was_seen():
    for values in (np.array([0.1, 0.4]), np.array([-0.2, 0.1, 0.4])):
        low, high = st.bca_interval(values, 0.999)
        assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9


def test_bca_moves_with_the_skew_as_the_percentile_interval_does_not():
    low, high = st.bca_interval(SKEWED, resamples=50_000, expanded=False)
    plain = np.quantile(st.resample_means(SKEWED, 0, 50_000), [0.025, 0.975])
    assert low > plain[0] + 0.01
    assert high > plain[1] + 0.01


def test_bca_of_values_without_spread_and_of_one_patient():
    assert st.bca_interval(np.zeros(9)) == (0.0, 0.0)
    assert all(math.isnan(end) for end in st.bca_interval(np.array([0.3])))


def test_bca_has_enough_draws_for_a_narrow_tail():
    wide, wider = (st.bca_interval(NORMAL, 1 - a, resamples=10) for a in (0.05, 0.0005))
    assert wider[0] < wide[0] < wide[1] < wider[1]


def test_permutation_by_hand():
    # Of the 16 patterns of signs, +-(1, 2, 3, 4) alone reach a sum of 10; (-1, 2, 3, 4) has 8.
    assert st.permutation_test(np.array([1.0, 2, 3, 4])) == 2 / 16
    assert st.permutation_test(np.array([-1.0, 2, 3, 4])) == 4 / 16
    assert st.permutation_test(np.array([0.1, 0.2, -0.3])) == 1.0
    assert st.permutation_test(np.zeros(20)) == 1.0
    assert st.smallest_p(4) == 2 / 16


@pytest.mark.parametrize("count", [9, 13, 30])
def test_permutation_agrees_with_sign_patterns_by_hand(count):
    values = NORMAL[:count]
    if count <= 13:
        signs = 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1) - 1
    else:
        signs = np.random.default_rng(3).choice([-1, 1], (40_000, count))
    theirs = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-9)
    own = st.permutation_test(values, resamples=40_000)
    assert own == pytest.approx(theirs, abs=1e-12 if count <= 13 else 0.01)


def test_both_tails_are_counted_instead_of_doubling_the_smaller():
    values = NORMAL[:20]
    doubled = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=40_000, rng=3
    ).pvalue
    assert st.permutation_test(values, resamples=40_000) == pytest.approx(doubled, abs=0.01)


def test_permutation_is_near_the_paired_t_test_where_both_hold():
    values = NORMAL - 0.1
    t = stats.ttest_rel(values, np.zeros(len(values))).pvalue
    assert st.permutation_test(values, resamples=100_000) == pytest.approx(t, abs=0.01)


def test_permutation_is_never_zero():
    assert st.permutation_test(np.full(40, 0.5), resamples=999) == 1 / 1000
    assert st.permutation_test(np.full(40, 0.5)) == st.smallest_p(40)
    assert st.permutation_test(np.full(13, 0.5)) == st.smallest_p(13) == 2 / 2**13
    assert st.permutation_test(np.array([0.5])) == st.smallest_p(1) == 1


def test_wilcoxon():
    # All eight differences positive: both tails of 2^8 patterns have one pattern each.
    assert st.wilcoxon(np.arange(1.0, 9)) == 2 / 256
    assert st.wilcoxon(NORMAL) == stats.wilcoxon(NORMAL).pvalue
    assert st.wilcoxon(np.zeros(5)) == 1.0


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.6 times 4, 3, 2, 1, never falling.
    assert st.holm([0.02, 0.6, 0.01, 0.03]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    assert st.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert st.holm([]) == []


def test_students_interval_decides_as_two_one_sided_tests():
    low, high = st.student_interval(NORMAL, 0.9)
    expected = stats.ttest_1samp(NORMAL, 0).confidence_interval(0.9)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert stats.ttest_1samp(NORMAL, low, alternative="greater").pvalue == pytest.approx(0.05)
    assert stats.ttest_1samp(NORMAL, high, alternative="less").pvalue == pytest.approx(0.05)


def test_students_interval_by_hand():
    # Mean 0, standard deviation 1, n = 4: standard error 0.5, t(3) of 1 is 2, whose tail is 0.0697.
    values = np.array([-1, -1, 1, 1]) * math.sqrt(3) / 2
    assert st.student_interval(values, 1 - 2 * 0.0697) == pytest.approx((-1, 1), abs=1e-3)
    low, high = st.student_interval(values, 0.9)
    p_within, p_beyond = (
        stats.ttest_1samp(values, high * factor, alternative="less").pvalue
        for factor in (1.001, 0.999)
    )
    assert p_within < 0.05 < p_beyond
    assert low == -high
    assert st.student_interval(np.zeros(3), 0.9) == (0, 0)
    assert st.student_interval(np.full(3, 0.02), 0.9) == (0.02, 0.02)
    assert all(map(math.isnan, st.student_interval(np.array([0.0]), 0.9)))


def test_smallest_detectable_is_found_with_the_power_it_says():
    values = NORMAL[:12] / NORMAL[:12].std(ddof=1)
    shift = st.smallest_detectable(values)
    drawn = np.random.default_rng(4).normal(shift, 1, (20_000, 12))
    found = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=0.01)
    # The noncentral t distribution says the same.
    critical = stats.t.isf(0.025, 11)
    assert stats.nct.sf(critical, 11, shift * math.sqrt(12)) == pytest.approx(0.8, abs=1e-4)
    assert st.smallest_detectable(values, power=0.95) > shift
    assert st.smallest_detectable(values, alpha=0.01) > shift
    assert st.smallest_detectable(np.zeros(4)) == 0
    assert st.smallest_detectable(np.array([1.0, 2.0]), alpha=0.001) > 100  # one degree of freedom
    assert math.isnan(st.smallest_detectable(np.array([1.0])))


def test_seed_variance_by_hand():
    # Patients 0 and 4, seeds differ by 2, nothing else: variances 8 and 2.
    found = st.seed_variance(np.array([[-1.0, 1.0], [3.0, 5.0]]))
    assert (found.patients, found.seeds, found.rest) == pytest.approx((8, 2, 0))
    gap = st.seed_variance(np.array([[-1.0, 1.0], [3.0, 5.0], [np.nan, 7]]))
    assert gap == found
    assert math.isnan(st.seed_variance(np.ones((5, 1))).seeds)


def test_seed_variance_recovers_what_was_put_in():
    rng = np.random.default_rng(0)
    shape = (300, 300)
    values = rng.normal(0, 3, (300, 1)) + rng.normal(0, 2, 300) + rng.normal(0, 1, shape)
    found = st.seed_variance(values)
    assert (found.patients, found.seeds, found.rest) == pytest.approx((9, 4, 1), rel=0.2)


def test_flip_rate():
    assert st.flip_rate(np.array([1.0, 2, 3])) == 0
    assert st.flip_rate(np.zeros(4)) == 0.5
    # Of the 4 draws of two, (-1, -1) flips the sign of (-1, 2).
    assert st.flip_rate(np.array([-1.0, 2.0])) == pytest.approx(1 / 4, abs=0.02)
    # (-1, 1.5, 1.5): the sum is negative only for three or two of -1: 1/27 + 6/27.
    assert st.flip_rate(np.array([-1.0, 1.5, 1.5])) == pytest.approx(7 / 27, abs=0.02)
    assert math.isnan(st.flip_rate(np.array([1.0])))


def test_ranking_flip_rate():
    values = np.array([[0.0, -1], [0, 2]])
    assert st.ranking_flip_rate(values) == pytest.approx(1 / 4, abs=0.02)
    assert st.ranking_flip_rate(np.array([[0.0, 1], [0, 2]])) == 0
    assert st.ranking_flip_rate(np.ones((5, 2))) == 0.5


def dice_like(rng, shape):
    """Differences of two Dice scores of one patient, difficulty in common, with a long tail."""
    hard = rng.beta(1.2, 6, shape)
    return (1 - hard * rng.uniform(0.7, 1.3, shape)) - (1 - hard * rng.uniform(0.8, 1.6, shape))


def one_sided(rng, shape):
    """Dice differences where one variant now and then does much worse: skewed by 2."""
    return rng.normal(0, 0.01, shape) - rng.gamma(1.0, 0.03, shape)


DISTRIBUTIONS = {
    "normal": (lambda rng, shape: rng.normal(0, 1, shape), 0.0),
    "student t with 5": (lambda rng, shape: rng.standard_t(5, shape), 0.0),
    "dice-like": (dice_like, 0.2 * (1.2 / 7.2)),
    "one-sided": (one_sided, -0.03),
}


def coverage(name, repeats, resamples, patients=60):
    draw, mean = DISTRIBUTIONS[name]
    rng = np.random.default_rng(11)
    ends = [
        st.bca_interval(draw(rng, patients), seed=i, resamples=resamples) for i in range(repeats)
    ]
    return float(np.mean([low <= mean <= high for low, high in ends]))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_bca_covers_quick(name):
    assert 0.91 <= coverage(name, 400, 1000) <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_bca_covers_95_percent(name):
    found = coverage(name, 4000, 4000)
    print(f"coverage of {name}: {found:.4f}")
    assert 0.93 <= found <= 0.97


def false_alarms(repeats, patients, variants=4):
    """How often any of several copies of a method is called different from the baseline."""
    rng = np.random.default_rng(12)
    alarms = []
    for i in range(repeats):
        noise = rng.gamma(1.0, 0.03, (variants + 1, patients))  # skewed, and the same for all
        pairs = [make_pair(str(k), noise[k] - noise[0]) for k in range(1, variants + 1)]
        found = contrast_family(pairs, Decision(0.01, seed=i))
        alarms.append(any(c.networks.different for c in found))
    return float(np.mean(alarms))


def test_family_of_null_comparisons_quick():
    assert false_alarms(60, 30) <= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("patients", [8, 20, 60])
def test_family_wise_error_is_at_most_6_percent(patients):
    found = false_alarms(2000, patients)
    print(f"family-wise error of 4 comparisons, {patients} patients: {found:.4f}")
    assert found <= 0.06
