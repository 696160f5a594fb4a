"""Pairs of variants over the same cases, missed and spurious classes, and the null control."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from attnseg.study.compare import compare_runs
from attnseg.study.detection import compare_patients
from attnseg.study.page import build_heat_map
from tests.study.folders import make_run

NAN = float("nan")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs"


def run_compare(folder, **options):
    return compare_runs([f"{folder}/*/*"], outputs=folder.parent / "out", **options)


def healthy_and_ill(invented, patients=24, healthy=9, seed=0):
    """Dice by cell; the first patients have no lesion, and some of them an invented one."""
    values, rng = {}, np.random.default_rng(seed)
    for i in range(patients):
        own = 0.8 + 0.02 * rng.normal()
        if i < healthy:
            own = 0.0 if i < invented else NAN
        values[f"p{i:02}", f"p{i:02}_day0", "lesion"] = own
    voxels = {key: (0, 5) for at, key in enumerate(values) if at < invented}
    return values, voxels


@pytest.mark.parametrize("inventor", ["qkv", "kv"])
def test_an_invented_lesion_costs_where_the_other_was_silent(folder, inventor):
    """Of 24 patients nine are healthy; one variant invents in six of them, the other in one."""
    for attn in ("qkv", "kv"):
        values, voxels = healthy_and_ill(6 if attn == inventor else 1)
        make_run(folder, attn, values, voxels=voxels)
    found = run_compare(folder)
    (only,) = found.against
    sign = -1 if inventor == "kv" else 1
    # 15 ill patients, 6 in whom one of both invented; in the other three both are silent.
    assert only.patients == 21
    # Five patients score 0 against the 1 of the silent variant, one 0 against 0.
    assert only.difference == pytest.approx(sign * 5 / 21, abs=1e-12)
    assert not only.equivalent
    errors = {(e.variant, e.error): e for e in found.errors}
    assert (errors[inventor, "spurious"].count, errors[inventor, "spurious"].of) == (6, 9)
    assert errors["kv", "missed"].count == 0
    invented = errors["kv", "spurious"]
    assert (invented.more, invented.fewer) == ((5, 0) if inventor == "kv" else (0, 5))
    # McNemar's exact test of 5 discordant patients, doubled by Holm for missed and spurious.
    assert invented.p == pytest.approx(2 * 2 * 0.5**5)
    assert not any("spurious" in doubt for doubt in found.warnings)
    text = (folder.parent / "out" / "comparison.md").read_text()
    assert re.search(r"\| (qkv|kv) \| 0 of 15 \(0%\) \| [^|]+\| [^|]+\| 6 of 9 \(67%\)", text)


def test_many_inventions_are_a_reason_for_doubt(folder):
    for attn, invented in (("qkv", 0), ("kv", 9)):
        values, voxels = healthy_and_ill(invented)
        make_run(folder, attn, values, voxels=voxels)
    doubts = run_compare(folder).warnings
    expected = "kv predicts spurious classes more often than qkv in 9 patients"
    assert any(expected in doubt for doubt in doubts)


def test_silence_in_a_pair_is_the_perfect_score_of_the_metric(folder):
    """For a distance that is 0 mm, and only the pair's own runs decide what counts."""
    rows = {("p0", "c0", "a"): 4.0, ("p0", "c0", "b"): NAN, ("p1", "c1", "a"): NAN}
    make_run(folder, "qkv", rows | {("p1", "c1", "b"): 7.0}, metric="hd95_mm")
    worse = rows | {("p0", "c0", "b"): 30.0, ("p1", "c1", "b"): 7.0}
    invented = {("p0", "c0", "b"): (0, 9)}
    make_run(folder, "kv", worse, metric="hd95_mm", voxels=invented)
    make_run(folder, "kv_pos", rows | {("p1", "c1", "b"): 7.0}, metric="hd95_mm")
    found = run_compare(folder, baseline="qkv")
    by_variant = {c.variant: c for c in found.against}
    # p0: (4 + 30) / 2 against (4 + 0) / 2; p1: 7 against 7.
    assert by_variant["kv"].difference == pytest.approx((17 - 2) / 2)
    assert by_variant["kv_pos"].difference == 0
    # As in metrics.json: of a, 4; of b, (30 + 7) / 2 or 7.
    means = {"qkv": 5.5, "kv": (4 + 18.5) / 2, "kv_pos": 5.5}
    assert found.variants["mean"].to_dict() == pytest.approx(means)


def test_silence_of_some_seeds_counts_as_soon_as_one_run_has_a_value(folder):
    for seed in (0, 1):
        values, voxels = healthy_and_ill(0, seed=seed)
        make_run(folder, "qkv", values, seed=seed, voxels=voxels)
        values, voxels = healthy_and_ill(4 * seed, seed=seed + 2)
        make_run(folder, "kv", values, seed=seed, voxels=voxels)
    (only,) = run_compare(folder).against
    assert only.patients == 15 + 4
    # No two runs have the same scores of the ill patients, since copies of a run are refused.
    assert only.difference == pytest.approx(-0.5 * 4 / 19, abs=0.02)


def test_a_miss_without_a_number_is_left_out_of_the_pair(folder):
    """MONAI gives a missed organ no distance: nothing says how far a pair is apart there."""
    rows = {(f"p{i}", f"c{i}", "a"): 3.0 + i for i in range(6)}
    make_run(folder, "qkv", rows, metric="hd95_mm")
    missed = {("p2", "c2", "a"): (80, 0)}
    make_run(folder, "kv", {**rows, ("p2", "c2", "a"): NAN}, metric="hd95_mm", voxels=missed)
    found = run_compare(folder)
    assert (found.against[0].patients, found.against[0].difference) == (5, 0)
    assert [e.count for e in found.errors if e.error == "missed"] == [0, 1]


def test_the_heat_map_has_the_sign_of_the_table(folder):
    """kv is undefined in the hard patients, so that its own mean is the larger one."""
    rng = np.random.default_rng(3)
    base = np.r_[rng.normal(8, 0.1, 20), rng.normal(2, 0.1, 8)]
    rows = {(f"p{i}", f"c{i}", k): base[i] for i in range(28) for k in ("liver", "duct")}
    make_run(folder, "qkv", rows, metric="hd95_mm")
    worse = {key: value + 0.05 * rng.uniform(0.9, 1.1) for key, value in rows.items()}
    hard = [(f"p{i}", f"c{i}", "duct") for i in range(24, 28)]
    missed = dict.fromkeys(hard, (100, 0))
    worse |= dict.fromkeys(hard, NAN)
    make_run(folder, "kv", worse, metric="hd95_mm", voxels=missed)
    found = run_compare(folder)
    table = {c.what: c.difference for c in found.classes}
    means = found.class_means.loc["duct"]
    assert means["kv"] - means["qkv"] > 0.1 > 0.06 > table["duct"] > 0.04
    cells = {name: row[1]["difference"] for name, row in build_heat_map(found)}
    assert cells == {name: f"+{found.metric.text(value)}" for name, value in table.items()}


def test_the_exact_test_is_mcnemars_by_hand():
    """Eight discordant patients, seven of them one way: twice the tail of a fair coin."""
    own, base = np.repeat([1, 0, 1, 0], [7, 1, 5, 9]), np.repeat([0, 1, 1, 0], [7, 1, 5, 9])
    more, fewer, p = compare_patients(pd.Series(own), pd.Series(base))
    assert (more, fewer) == (7, 1)
    assert p == pytest.approx(2 * (1 + 8) / 2**8)
    assert p == pytest.approx(stats.binomtest(7, 8).pvalue)
    assert compare_patients(pd.Series([0, 0]), pd.Series([0, 0])) == (0, 0, 1.0)


def test_the_null_control_within_the_margin_leads_the_headline(folder):
    rng = np.random.default_rng(5)
    base = 0.7 + 0.1 * rng.random(55)
    scores = {
        "qkv": base,
        "kv": base - 0.06 + 0.01 * rng.normal(size=55),
        "identity": base - 0.004 + 0.003 * rng.normal(size=55),
    }
    for attn, values in scores.items():
        make_run(folder, attn, {f"p{i:02}": v for i, v in enumerate(values)})
    found = run_compare(folder)
    assert found.controls == ["identity"]
    page = (folder.parent / "out" / "comparison.html").read_text()
    headline = re.search("<h1>(.+?)</h1>", page, re.S)[1]
    assert headline.startswith("Of these networks alone")
    assert re.search(
        r" Caution: identity, which mixes no tokens, is only 0\.00\d\d Dice worse than qkv "
        r"\(margin 0\.01\): beyond the difference shown, these data cannot tell attentions "
        r"apart\.$",
        headline,
    )
    assert any("cannot tell attentions apart" in doubt for doubt in found.warnings)
    strict = run_compare(folder, margin=0.001)
    assert not any("cannot tell" in doubt for doubt in strict.warnings)


def test_a_null_control_that_is_far_below_says_nothing_and_none_is_asked_for(folder):
    rng = np.random.default_rng(6)
    base = 0.7 + 0.1 * rng.random(55)
    for at, attn in enumerate(("qkv", "kv", "identity")):
        values = base - 0.2 * (attn == "identity") + 0.003 * rng.normal(size=55)
        make_run(folder, attn, {f"p{i:02}": v for i, v in enumerate(values)}, seed=at)
    assert not any("token" in doubt for doubt in run_compare(folder).warnings)
    without = compare_runs([f"{folder}/*kv/*"], outputs=folder.parent / "out")
    assert any("no variant without token mixing" in doubt for doubt in without.warnings)
