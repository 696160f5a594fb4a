"""Plans of a comparison: patients and seeds for a power."""

import numpy as np
import pandas as pd
import pytest

from attnseg.errors import ConfigError, DataError
from attnseg.study.contrasts import Decision, PairedValues, contrast_family
from attnseg.study.plan import estimate_variation, find_patients, plan_comparison
from attnseg.study.power import Variation, detectable_difference, power_to_differ, power_to_equal
from tests.study.folders import make_run

GIVEN = {
    "difference": 0.02, "runs": [], "baseline": "qkv", "by": ["model", "attn"], "split": "test",
    "metric": None, "patient_sd": 0.03, "seed_sd": 0.004, "rest_sd": 0.01, "loss": 0.8,
    "seeds": [2, 3, 5], "comparisons": 1, "power": 0.8, "level": 0.95,
}  # fmt: skip
VARIATION = Variation(0.03, 0.004, 0.01)


def draw_pair(rng, patients, seeds, difference, variation=VARIATION):
    effect = rng.normal(difference, variation.patients, patients)[:, None]
    own, base = (
        rng.normal(0, variation.seeds, seeds) + rng.normal(0, variation.rest, (patients, seeds))
        for _ in range(2)
    )
    return PairedValues("kv", "qkv", pd.DataFrame(0.8 + effect + own), pd.DataFrame(0.8 + base))


def test_the_plan_says_how_many_patients_each_number_of_seeds_needs(tmp_path, capsys):
    needed = plan_comparison(0.01, **GIVEN, outputs=tmp_path)
    shown, good = needed.values()
    assert shown[5] < shown[3] < 200
    assert good[5] > 300  # One in a hundred may fail: 300 patients without one are needed at least.
    said = capsys.readouterr().out
    assert f"3 seeds of each variant: {shown[3]}" in said
    assert "no number is enough (power" in said
    assert good[2] is None
    assert power_to_differ(VARIATION, shown[3], 3, 0.02) >= 0.8
    assert power_to_differ(VARIATION, shown[3] - 1, 3, 0.02) < 0.8
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    family = plan_comparison(0.01, **{**GIVEN, "comparisons": 4}, outputs=tmp_path)
    assert next(iter(family.values()))[5] > shown[5]
    with pytest.raises(ConfigError, match="give a pilot's runs, or patient_sd and seed_sd"):
        plan_comparison(0.01, **{**GIVEN, "seed_sd": None}, outputs=tmp_path)


@pytest.mark.parametrize("difference", [0.02, 0.012])
def test_the_power_is_that_of_the_decision(difference):
    """150 studies of 40 patients and 4 seeds, decided by the comparison itself."""
    rng, hits = np.random.default_rng(3), []
    for study in range(150):
        decision = Decision(None, seed=study, resamples=500, detects=False)
        (c,) = contrast_family([draw_pair(rng, 40, 4, difference)], decision)
        hits.append(c.different)
    assert np.mean(hits) == pytest.approx(power_to_differ(VARIATION, 40, 4, difference), abs=0.09)


def test_what_is_found_is_found_with_the_power_it_says():
    size = detectable_difference(VARIATION, 40, 4)
    assert power_to_differ(VARIATION, 40, 4, size) == pytest.approx(0.8, abs=2e-3)
    assert power_to_differ(VARIATION, 40, 4, 0.0) <= 0.05
    assert power_to_equal(VARIATION, 10_000, 30, 0.01, 0.8) > 0.9
    assert power_to_equal(VARIATION, 150, 30, 0.01, 0.8) < 0.02  # unseen failures decide
    assert find_patients(lambda n, seeds: n / 100, 3, 0.8) == 80
    assert find_patients(lambda n, seeds: 0.5, 3, 0.8) is None


def test_a_pilot_gives_the_variation(tmp_path):
    rng = np.random.default_rng(0)
    pair = draw_pair(rng, 200, 6, 0.0, Variation(0.03, 0.006, 0.01))
    for attn, table in (("kv", pair.own), ("qkv", pair.base)):
        for seed in table:
            make_run(tmp_path, attn, {f"p{i}": v for i, v in enumerate(table[seed])}, seed=seed)
    found = estimate_variation([f"{tmp_path}/*/*"], "qkv", ["model", "attn"], "test", None)
    assert found.patients == pytest.approx(0.03, rel=0.15)
    assert found.rest == pytest.approx(0.01, rel=0.1)
    spread = max(table.mean().std() for table in (pair.own, pair.base))
    assert found.seeds == pytest.approx(spread)
    with pytest.raises(DataError, match="two seeds each"):
        only = [f"{tmp_path}/*/0"]
        estimate_variation(only, "qkv", ["model", "attn"], "test", None)
