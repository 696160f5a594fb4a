"""Errors of a difference between attentions, and bounds that allow for failures."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from attnseg.runs.variants import group_by_variant, open_finished_runs
from attnseg.study.contrasts import Decision, contrast_family, pair_values
from attnseg.study.failures import bound_failures, bound_mean
from attnseg.study.metric import ComparedMetric
from attnseg.study.score_sheet import ScoreSheet
from attnseg.study.trainings import average_seeds, deviate_seeds, estimate_errors
from tests.study.folders import make_pair, make_run

DIFFERENCES = np.array([0.01, 0.03, -0.02, 0.04, 0.02])
OWN, BASE = np.array([0.81, 0.83, 0.80]), np.array([0.80, 0.79])


def test_error_by_hand():
    parts = [(DIFFERENCES.var(ddof=1) / 5, 4), (OWN.var(ddof=1) / 3, 2), (BASE.var(ddof=1) / 2, 1)]
    total = sum(v for v, _ in parts)
    degrees = total**2 / sum(v**2 / d for v, d in parts)
    error = estimate_errors(DIFFERENCES, OWN, BASE).both
    assert (error.error, error.degrees) == pytest.approx((math.sqrt(total), degrees))
    assert error.half_width(0.95) == pytest.approx(stats.t.isf(0.025, degrees) * math.sqrt(total))
    assert error.p_value(error.half_width(0.95)) == pytest.approx(0.05)
    trainings = estimate_errors(DIFFERENCES, OWN, BASE).trainings
    assert trainings.error == pytest.approx(math.sqrt(parts[1][0] + parts[2][0]))
    assert math.isnan(estimate_errors(DIFFERENCES, OWN[:1], BASE).both.error)


def test_folds_are_not_independent():
    folds = np.array([0, 0, 1, 1, 1])
    means = [DIFFERENCES[:2].mean(), DIFFERENCES[2:].mean()]
    steady = np.array([0.8, 0.8])
    same = estimate_errors(DIFFERENCES, steady, steady, folds).both
    corrected = (1 / 2 + 1 / 1) * np.var(means, ddof=1)
    patients = DIFFERENCES.var(ddof=1) / 5
    assert same.error == pytest.approx(math.sqrt(max(corrected, patients)))
    apart = np.array([-0.05, -0.05, 0.05, 0.05, 0.05])
    error = estimate_errors(apart, steady, steady, folds).both
    assert (error.error, error.degrees) == pytest.approx((math.sqrt(1.5 * 0.1**2 / 2), 1))


def test_folds_are_known_by_who_tested_whom(tmp_path):
    for attn in ("qkv", "kv"):
        for seed, fold in ((0, 0), (0, 1), (1, 0), (1, 1)):
            values = {f"p{fold}{i}": 0.8 + 0.01 * i for i in range(3)}
            options = {"fold": fold, "folds": 2, "test_set": f"t{fold}"}
            make_run(tmp_path, attn, values, seed=seed, name=f"{seed}{fold}", **options)
    variants = group_by_variant(open_finished_runs(tmp_path.glob("*/*")), ("attn",))
    metric = ComparedMetric("dice", "Dice", up=True, unit="Dice")
    pair = pair_values(ScoreSheet.of(variants, "test", metric), "kv", "qkv")
    assert pair.folds.nunique() == 2
    assert (pair.folds.groupby(lambda patient: patient[1]).nunique() == 1).all()


def test_seeds_are_compared_over_the_same_patients():
    values = pd.DataFrame({0: [0.9, 0.5, np.nan], 1: [0.92, 0.52, 0.1]})
    first, second = average_seeds(values)
    assert second - first == pytest.approx(0.02)
    deviation, low, high = deviate_seeds(np.array([0.8, 0.82, 0.84]))
    assert deviation == pytest.approx(0.02)
    assert (low, high) == pytest.approx(0.02 * np.sqrt(2 / stats.chi2.ppf([0.975, 0.025], 2)))
    assert all(map(math.isnan, deviate_seeds(np.array([0.8]))))


def test_the_seed_sd_is_never_printed_as_zero():
    metric = ComparedMetric("dice", "Dice", up=True, unit="Dice")
    assert metric.deviation_text(0.00001, 0.0, 0.02) == "< 0.0001 (< 0.0001 to 0.0200)"
    assert metric.deviation_text(0.004, 0.002, 0.02) == "0.0040 (0.0020 to 0.0200)"


@pytest.mark.parametrize("failed", [0, 1, 4])
def test_bound_of_equal_values_is_that_of_clopper_and_pearson(failed):
    values = np.r_[np.zeros(failed), np.ones(30 - failed)]
    low, high = bound_mean(values, 0.0, 1.0, resamples=100_000)
    assert low == pytest.approx(stats.beta.ppf(0.05, 30 - failed, failed + 1), abs=0.003)
    upper = 1.0 if failed == 0 else stats.beta.ppf(0.95, 31 - failed, failed)
    assert high == pytest.approx(upper, abs=0.003)
    bound = bound_failures(1 - values, 1.0)
    assert (bound.seen, bound.upper) == (failed, pytest.approx(1 - low, abs=0.003))


@pytest.mark.parametrize("patients", [12, 60])
def test_failures_that_were_not_seen_forbid_equivalence(patients):
    """Patients agree to 0.001; one in twenty or fifty fails, and most samples hold no failure."""
    rng = np.random.default_rng(patients)
    pair = make_pair("kv", rng.normal(0, 0.001, patients))
    (c,) = contrast_family([pair], Decision(0.01))
    assert max(-c.attention.low_90, c.attention.high_90) < 0.01
    assert not (c.equivalent or c.attention.noninferior or c.networks.equivalent)
    assert c.failures.effect > 0.01
    few = make_pair("kv", np.zeros(9))
    assert not contrast_family([few], Decision(0.5))[0].equivalent
    assert contrast_family([make_pair("kv", np.zeros(10))], Decision(0.5))[0].equivalent
