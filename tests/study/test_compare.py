"""A comparison from run folders to sentences, tables and pictures."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from attnseg.config.identity import short_digest
from attnseg.errors import DataError
from attnseg.study.compare import compare_runs
from attnseg.study.contrasts import Decision, contrast_family
from attnseg.study.costs import find_pareto_front
from attnseg.study.metric import ComparedMetric
from attnseg.study.verdict import write_verdict
from tests.study.folders import make_pair, make_run

DICE = ComparedMetric("dice", "Dice", up=True, unit="Dice")
HD95 = ComparedMetric("hd95_mm", "HD95 (mm)", up=False, unit="mm", digits=2)
PATIENTS = 60


def scores(seed, shift=0.0, noise=0.0, patients=PATIENTS):
    """Dice of patients whose difficulty does not depend on the seed."""
    base = 0.9 - 0.2 * np.random.default_rng(0).beta(1.5, 5, patients)
    own = base + shift + noise * np.random.default_rng(seed).normal(size=patients)
    return {f"p{i:02}": value for i, value in enumerate(own)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs"


def run_compare(folder, **options):
    return compare_runs([f"{folder}/*/*"], outputs=folder.parent / "out", **options)


def test_two_copies_show_no_difference_and_are_equivalent(folder):
    for attn in ("qkv", "kv"):
        for seed in (0, 1):
            make_run(folder, attn, scores(seed, noise=0.01), seed=seed)
    found = run_compare(folder, margin=0.05)
    (only,) = found.against
    networks = only.networks
    assert (only.difference, networks.low, networks.high, networks.p) == (0, 0, 0, 1)
    # The patients agree exactly, so that only the means of the two seeds of each variant count.
    means = [np.mean(list(scores(seed, noise=0.01).values())) for seed in (0, 1)]
    half = stats.t.isf(0.05, 2) * np.std(means, ddof=1)
    assert (only.attention.low_90, only.attention.high_90) == pytest.approx((-half, half))
    assert (only.different, only.equivalent) == (False, True)
    assert found.verdicts[0].startswith(
        "kv is equivalent to qkv within 0.05 Dice (difference 0.0000, 95 % interval -0.0"
    )
    assert found.verdicts[0].endswith(
        "kv is equivalent to qkv within 0.05 Dice (difference 0.0000, 95 % interval 0.0000 to "
        "0.0000; 60 patients)"
    )


def test_equivalence_needs_the_margin(folder):
    for seed in (1, 2):
        make_run(folder, "qkv", scores(seed, noise=0.02), seed=seed)
        make_run(folder, "kv", scores(2 + seed, noise=0.02), seed=seed)
    assert "is equivalent to qkv within 0.06 Dice" in run_compare(folder, margin=0.06).verdicts[0]
    narrow = run_compare(folder, margin=0.001)
    assert "no difference between kv and qkv is shown (difference" in narrow.verdicts[0]
    assert not narrow.against[0].equivalent
    # Without failures, it would be: those not seen decide.
    unseen = run_compare(folder, margin=0.03)
    assert not unseen.against[0].equivalent
    assert (
        "not equivalent: none of 60 patients failed under kv alone; at most 4.9 % of all patients "
        "do (95 % limit), which would lower the mean by 0.0" in (unseen.verdicts[0])
    )


def test_the_margin_is_declared_before_the_runs(folder):
    declared = {"baseline": "qkv", "margin": {"dice": 0.07, "nsd": 0.1}}
    declared["digest"] = digest = short_digest(declared)
    for seed, attn in enumerate(("qkv", "kv")):
        make_run(folder, attn, scores(seed, noise=0.02), declared=declared)
    found = run_compare(folder)
    assert found.margin == 0.07
    assert any(
        f"which the study declared before its runs ({digest})" in note for note in found.notes
    )
    assert not any("declared" in doubt for doubt in found.warnings)
    later = run_compare(folder, margin=0.08)
    assert "the margin of 0.08 Dice was not declared before the runs; the runs declare 0.07" in (
        later.warnings
    )


def test_runs_that_declare_different_margins_are_doubted(folder):
    for seed, margin in enumerate((0.02, 0.01, None)):
        declared = {"baseline": "qkv", "margin": margin, "metrics": ["dice"], "digest": f"{seed}"}
        make_run(folder, ("qkv", "kv", "kv_pos")[seed], scores(seed), declared=declared)
    found = run_compare(folder)
    assert found.margin == 0.01
    assert "the runs declare different margins (0.01, 0.02, none)" in found.warnings
    given = run_compare(folder, margin=0.02)
    assert any("runs; the runs declare 0.01, 0.02, none" in doubt for doubt in given.warnings)


@pytest.mark.parametrize("declared_by", ["runs", "study"])
def test_a_single_margin_is_not_one_of_a_length_beside_other_metrics(folder, declared_by):
    for metrics, margin in ((["dice", "hd95_mm"], None), (["hd95_mm"], 2.0)):
        study = {"baseline": "qkv", "margin": 2.0, "metrics": metrics}
        declared = {**study, "digest": "5eed"} if declared_by == "runs" else {}
        for seed, attn in enumerate(("qkv", "kv")):
            name = f"{seed} of {len(metrics)}"
            make_run(folder / str(len(metrics)), attn, scores(seed), metric="hd95_mm", name=name,
                     declared=declared)  # fmt: skip
        given = study if declared_by == "study" else None
        assert run_compare(folder / str(len(metrics)), margin=given).margin == margin


def test_a_length_has_no_default_margin(folder):
    for attn in ("qkv", "kv"):
        for seed in (0, 1):
            make_run(folder, attn, scores(seed, noise=0.01), seed=seed, metric="hd95_mm")
    found = run_compare(folder)
    assert (found.margin, found.against[0].equivalent) == (None, False)
    assert any("No margin in mm was given" in note for note in found.notes)
    assert "equivalent" not in found.verdicts[0]
    assert run_compare(folder, margin=0.5).margin == 0.5


def test_a_worse_variant_is_called_worse(folder):
    for seed in (0, 1):
        make_run(folder, "qkv", scores(seed, noise=0.01), seed=seed)
        make_run(folder, "kv", scores(2 + seed, -0.05, 0.01), seed=seed)
        make_run(folder, "efficient", scores(4 + seed, 0.05, 0.01), seed=seed)
    found = run_compare(folder)
    worse, better = found.verdicts[1], found.verdicts[0]
    assert re.match(r"kv is worse than qkv by 0\.0\d+ Dice \(difference -0", worse)
    assert "60 patients, 2 seeds each)" in worse
    assert "corrected for 2 comparisons" in worse
    assert better.startswith("efficient is better than qkv by")
    assert len(found.pairs) == 3
    assert {(c.variant, c.baseline) for c in found.pairs} >= {("kv", "efficient")}


def test_each_model_is_held_against_its_own_baseline(folder):
    """SETR is far better than CvT: across models, KV would look like a large difference."""
    for model, level in (("setr", 0.0), ("cvt", -0.3)):
        make_run(folder / model, "qkv", scores(1, level, 0.005), model=model)
        make_run(folder / model, "kv", scores(2, level - 0.05, 0.005), model=model)
    found = compare_runs([f"{folder}/*/*/*"], outputs=folder.parent / "out")
    assert found.bases == {"setr/kv": "setr/qkv", "cvt/kv": "cvt/qkv"}
    differences = {c.variant: c.difference for c in found.against}
    assert differences == pytest.approx({"setr/kv": -0.05, "cvt/kv": -0.05}, abs=0.003)
    assert {c.baseline for c in found.against} == {"setr/qkv", "cvt/qkv"}
    assert list(found.variants.index) == ["cvt/qkv", "cvt/kv", "setr/qkv", "setr/kv"]
    assert found.variants["macs_change_percent"].to_list() == [0, -25, 0, -25]
    page = (folder.parent / "out" / "comparison.html").read_text()
    assert re.search(
        "<h1>Of these networks alone .one seed gives no verdict on an attention.: on 60 patients "
        "of one split: cvt/kv and setr/kv are worse than the matching qkv by 0.0[45]",
        page.replace("setr/kv and cvt/kv", "cvt/kv and setr/kv"),
    )
    assert "Differences from the matching qkv" in page


def test_the_other_way_round_for_distances(folder):
    for seed in (0, 1):
        make_run(folder, "qkv", scores(seed, 0, 0.01), metric="hd95_mm", seed=seed)
        make_run(folder, "kv", scores(2 + seed, -0.3, 0.01), metric="hd95_mm", seed=seed)
    found = run_compare(folder)
    assert found.verdicts[0].startswith("kv is better than qkv by 0.30 mm")
    assert "HD95 (mm)" in found.title
    assert found.variants["pareto_front"].to_list() == ["no", "yes"]


def test_few_patients_are_told_what_they_could_have_shown(folder):
    make_run(folder, "qkv", scores(1, 0, 0.03, patients=7))
    make_run(folder, "kv", scores(2, 0, 0.03, patients=7))
    found = run_compare(folder, margin=0.001)
    size = found.against[0].networks.detectable
    detects = f"with 80 % power, this comparison detects a difference of {size:.4f} Dice or more"
    assert detects in found.verdicts[0]
    assert any("patients: 7, fewer than 50" in warning for warning in found.warnings)


@pytest.mark.parametrize("patients", [1, 5])
def test_too_few_patients_show_nothing_however_large(folder, patients):
    make_run(folder, "qkv", scores(1, 0, 0.001, patients=patients))
    make_run(folder, "kv", scores(2, -0.5, 0.001, patients=patients))
    found = run_compare(folder)
    assert not found.against[0].different
    assert not found.against[0].networks.different
    assert found.verdicts[0].endswith(
        "with 80 % power, this comparison detects no difference, however large"
    )


def test_bold_only_where_the_corrected_interval_excludes_zero():
    rng = np.random.default_rng(3)
    pairs = [make_pair("a", rng.normal(m, 1, 40)) for m in (0.5, 0, 0, 0, 0, 0)]
    single, family = (contrast_family(p, Decision(0.01)) for p in (pairs[:1], pairs))
    assert single[0].different
    alone, (among, *rest) = single[0].networks, [c.networks for c in family]
    assert alone.different
    assert among.low > 0 > among.simultaneous_low
    assert (among.p, family[0].family) == (alone.p, 6)
    assert among.p_holm > 0.05 > among.p
    assert not any(c.different for c in (among, *rest, *family))


def test_small_but_certain_is_both_worse_and_within_the_margin():
    values = np.random.default_rng(0).normal(-0.002, 0.002, 600)
    (c,) = contrast_family([make_pair("kv", values)], Decision(0.01))
    text = write_verdict(c, DICE)
    assert text.startswith("kv is worse than qkv by 0.0020 Dice")
    assert text.endswith("which is within 0.01 Dice, the margin of equivalence")
    (single,) = contrast_family([make_pair("kv", values, seeds=1)], Decision(0.01))
    assert "one seed of kv and of qkv does not tell" in write_verdict(single, DICE)
    assert not (single.different or single.equivalent or single.attention.noninferior)
    assert single.networks.different
    (c,) = contrast_family([make_pair("kv", values)], Decision(0.01, up=False, worst=None))
    assert write_verdict(c, HD95).startswith("kv is better than qkv by 0.00 mm")


def test_seeds_that_move_more_than_the_difference_decide(folder):
    for attn, shifts in (("qkv", (0.0, 0.03)), ("kv", (-0.01, 0.01))):
        for seed, shift in enumerate(shifts):
            make_run(folder, attn, scores(seed, shift, 0.002), seed=seed)
    found = run_compare(folder)
    # Means over two seeds: the variances of 0, 0.03 and of -0.01, 0.01, halved and added.
    error = np.sqrt((0.03**2 / 2 + 0.02**2 / 2) / 2)
    degrees = (0.03**2 + 0.02**2) ** 2 / (0.03**4 + 0.02**4)
    (c,) = found.against
    half = (c.attention.high - c.attention.low) / 2
    assert half == pytest.approx(stats.t.isf(0.025, degrees) * error, rel=0.1)
    assert (c.networks.verdict, c.verdict) == ("worse", "no difference shown")
    shown = found.variants.loc["kv", ["seed_sd", "seed_sd_low", "seed_sd_high"]]
    # Of two seeds, the interval of the deviation is that of chi-square with one degree.
    deviation = 0.02 / np.sqrt(2)
    quantiles = np.sqrt(stats.chi2.ppf([0.975, 0.025], 1))
    assert shown.to_list() == pytest.approx([deviation, *(deviation / quantiles)], rel=0.1)


def test_costs_stand_beside_quality(folder):
    make_run(folder, "qkv", scores(1, noise=0.01))
    make_run(folder, "kv", scores(2, -0.02, 0.01))
    make_run(folder, "efficient", scores(3, -0.05, 0.01))
    table = run_compare(folder).variants
    assert table.index.to_list() == ["qkv", "efficient", "kv"]
    assert table.loc["kv", "macs"] == 3_000_000
    changes = [f"{name}_change_percent" for name in ("parameters", "macs", "fit_seconds")]
    assert table.loc["kv", changes].to_list() == pytest.approx([-25, -25, -25])
    assert table["pareto_front"].to_dict() == {
        "qkv": "yes",
        "efficient": "tie",
        "kv": "yes",
    }  # of one seed, nothing is shown


def test_pareto_front_by_hand():
    def places(quality, cost, up=True):
        """Differences of 0.1 are shown, smaller ones are not, and those below 0.01 equivalent."""
        quality = dict(zip("abcd", quality, strict=False))
        pairs = [
            make_pair(b, np.repeat(quality[b] - quality[a], 300) + ripple, a)
            for a, b in combinations(quality, 2)
            if quality[a] == quality[a] and quality[b] == quality[b]
        ]
        decision = Decision(0.01, up, worst=None, resamples=500)
        contrasts = contrast_family(pairs, decision)
        cost = dict(zip(quality, cost, strict=True))
        return " ".join(find_pareto_front(quality, cost, contrasts, up).values())

    nan = float("nan")
    ripple = 0.001 * np.linspace(-1, 1, 300)
    assert places([0.9, 0.8, 0.7, nan], [10, 5, 6, 1]) == "yes yes no no"
    assert places([0.9, 0.9], [5, 5]) == "yes yes"
    assert places([0.9, 0.9], [5, 6]) == "yes no"  # equivalent, and cheaper
    assert places([3.0, 4.0], [5, 6], up=False) == "yes no"
    ripple = 2 * np.linspace(-1, 1, 300)  # nothing is shown
    assert places([0.91, 0.9, 0.92], [5, 6, 7]) == "yes tie yes"


def two_classes(seed, missing=0):
    values = {}
    for at, (patient, value) in enumerate(scores(seed, noise=0.01).items()):
        values[patient, f"{patient}_day0", "liver"] = value
        values[patient, f"{patient}_day0", "duct"] = float("nan") if at < missing else value - 0.3
    return values


def test_files_say_profile_counts_openings_and_units(folder, capsys):
    make_run(folder, "qkv", two_classes(1), openings=4)
    make_run(folder, "kv", two_classes(2, missing=2), openings=6)
    make_run(folder, "kv_pos", two_classes(3), openings=5)
    found = run_compare(folder)
    out, shown = folder.parent / "out", capsys.readouterr().out
    page, latex = (out / "comparison.md").read_text(), (out / "comparison.tex").read_text()
    for text in (shown, page, latex.replace(r"\_", "_").replace(r"\%", "%")):
        flat = " ".join(text.split())
        assert flat.count("strict (94e58393)") >= 5
        assert "test set was opened 6 times" in flat
        assert "warning" in flat.lower()
        assert "undefined values differ (qkv 0 of 120, kv 2 of 120, kv_pos 0 of 120)" in flat
        assert all(verdict in flat for verdict in found.verdicts)
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 6
    assert r"kv\_pos" in latex
    assert all(line.startswith("%") for line in latex.splitlines()[: 1 + len(found.verdicts)])
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {"duct", "liver"} <= {row.split(" | ")[0].strip("| ") for row in rows}
    assert found.class_undefined.loc["duct"].to_dict() == {"qkv": 0, "kv": 2, "kv_pos": 0}
    assert found.class_means["qkv"]["liver"] == pytest.approx(
        found.class_means["qkv"]["duct"] + 0.3
    )
    classes = pd.read_csv(out / "classes.csv")
    assert set(classes["family"]) == {4}
    assert classes["convention"].str.contains("94e58393").all()
    patients = pd.read_csv(out / "patients.csv", index_col="patient")
    # In a pair, kv was right to be silent on the ducts of two patients, which qkv has a value for.
    liver = pd.Series({key[0]: v for key, v in two_classes(2).items() if key[2] == "liver"})
    paired = patients["kv"].where(found.patients.index >= "p02", (liver + 1) / 2)
    difference = (paired - patients["qkv"]).mean()
    assert difference - (patients["kv"] - patients["qkv"]).mean() > 0.001
    against = pd.read_csv(out / "against.csv").set_index("variant")
    assert against.loc["kv", "difference"] == pytest.approx(difference)
    for name in ("forest.png", "patients.png", "seeds.png", "pareto.png"):
        with Image.open(out / name) as image:
            assert image.width == 800
            assert np.asarray(image.convert("L")).std() > 5


def test_bold_reaches_markdown_and_latex(folder):
    for seed in (0, 1):
        make_run(folder, "qkv", scores(seed, noise=0.01), seed=seed)
        make_run(folder, "kv", scores(2 + seed, -0.05, 0.01), seed=seed)
        make_run(folder, "kv_pos", scores(4 + seed, 0, 0.01), seed=seed)
    found = run_compare(folder)
    out = folder.parent / "out"
    bold = {c.variant: c.difference for c in found.against if c.different}
    assert set(bold) == {"kv"}
    assert f"| **{bold['kv']:.4f}** |" in (out / "comparison.md").read_text()
    latex = (out / "comparison.tex").read_text()
    assert rf"kv & this attention, other trainings & \textbf{{{bold['kv']:.4f}}} &" in latex
    assert not re.search(r"kv\\_pos & \\textbf", latex.split("Class by class")[0])


def test_a_watermark_stands_everywhere(folder, capsys):
    for seed, attn in enumerate(("qkv", "kv")):
        make_run(folder, attn, scores(seed, noise=0.01), watermark="WATCHED: not a result")
    found = run_compare(folder)
    out = folder.parent / "out"
    assert found.watermark == "WATCHED: not a result"
    assert capsys.readouterr().out.count("WATCHED") == 5
    assert (out / "comparison.md").read_text().count("WATCHED") == 5
    assert (out / "comparison.tex").read_text().count("WATCHED") == 5
    for path in out.glob("*.csv"):
        assert pd.read_csv(path)["watermark"].str.startswith("WATCHED").all(), path


def test_nothing_is_written_when_runs_do_not_compare(folder, capsys):
    make_run(folder, "qkv", scores(1))
    with pytest.raises(DataError, match="runs: only qkv is there"):
        run_compare(folder)
    make_run(folder, "kv", scores(1), data="other", test_set="u")
    with pytest.raises(DataError, match="runs: 2 problems, listed above"):
        run_compare(folder)
    assert capsys.readouterr().err.count("error: ") == 2
    assert not (folder.parent / "out").exists()


def test_the_same_comparison_twice_is_the_same_to_the_byte(folder):
    make_run(folder, "qkv", scores(1, noise=0.01))
    make_run(folder, "kv", scores(2, noise=0.01))
    run_compare(folder)
    names = [p.name for p in (folder.parent / "out").iterdir()]
    first = {n: (folder.parent / "out" / n).read_bytes() for n in names}
    run_compare(folder)
    assert first == {n: (folder.parent / "out" / n).read_bytes() for n in names}
