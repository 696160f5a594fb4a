"""Aggregation of case scores to patients, seeds and variants."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from attnseg.metrics.profiles.monai import MONAI
from attnseg.metrics.profiles.nnunet import NNUNet
from attnseg.metrics.profiles.profile import VOLUMES
from attnseg.metrics.profiles.strict import Strict
from attnseg.runs.variants import group_by_variant, open_finished_runs
from attnseg.study import cases, patient_scores
from tests.study.folders import make_run

DICE = {"007": 0.8, "7": 0.6, "NA": 0.7}


def group_runs(folders):
    return group_by_variant(open_finished_runs(folders), ("model", "attn"))


def test_patients_average_to_the_mean_of_the_profile(tmp_path):
    """Patients have one to four cases, and lack classes: their mean is that of metrics.json."""
    rng = np.random.default_rng(0)
    rows = {}
    for i in range(7):
        for day in range(1 + i % 4):
            for k in ("a", "b", "c"):
                lacks = (k == "c" and i > 2) or rng.random() < 0.2
                rows[f"p{i}", f"p{i}_{day}", k] = float("nan") if lacks else rng.uniform(0.3, 1)
    frame = pd.DataFrame(
        [(p, c, k, m, v if m in ("dice", "jaccard") else 100.0 + ord(k))
         for (p, c, k), v in rows.items()
         for m, v in (*((n, v) for n in ("dice", "jaccard", "nsd", "hd95_mm")),
                      *((n, 1) for n in VOLUMES))],
        columns=["patient", "case", "class", "metric", "value"],
    )  # fmt: skip
    for profile, metric in ((NNUNet(), "dice"), (MONAI(), "dice"), (Strict(), "weighted_jaccard")):
        cases = frame.assign(split="test")
        run = SimpleNamespace(cases=cases, profile=profile.describe())
        own = patient_scores.average_patients(run, "test", metric)
        missing = [m.name for m in profile.metrics if m.name not in set(frame["metric"])]
        filled = [frame, *(frame[frame["metric"] == "dice"].assign(metric=m) for m in missing)]
        table = profile.summarise(pd.concat(filled))
        assert own.mean() == pytest.approx(table.loc["mean", metric]), profile.name
        only = patient_scores.average_patients(run, "test", metric, ["c"])
        named = metric.removeprefix("weighted_")
        assert only.mean() == pytest.approx(table.loc["c", named]), profile.name
        assert len(only.dropna()) <= 3


def test_a_patient_with_more_cases_counts_more(tmp_path):
    rows = {("p", "day0", "a"): 0.5} | {("q", f"day{i}", "a"): 0.9 for i in range(1, 10)}
    (variant,) = group_runs([make_run(tmp_path, "kv", rows)])
    values = patient_scores.tabulate_seeds(variant, "test", "dice")[0]
    # 0.86 is the mean of the ten cases; 2 / 10 (0.5 - 0.86) and 2 * 9 / 10 (0.9 - 0.86) from it.
    assert values.to_dict() == pytest.approx({"p": 0.86 - 0.072, "q": 0.86 + 0.072})


def test_a_patient_is_its_influence_on_the_mean_of_cases_then_classes_then_seeds(tmp_path):
    nan = float("nan")
    first = {
        ("p", "day0", "a"): 1.0, ("p", "day0", "b"): 0.0,
        ("p", "day1", "a"): 0.9, ("p", "day1", "b"): nan,
        ("q", "day0", "a"): nan, ("q", "day0", "b"): nan,
    }  # fmt: skip
    second = {key: 0.3 for key in first}
    runs = [make_run(tmp_path, "kv", v, seed=s) for s, v in enumerate((first, second))]
    (variant,) = group_runs(runs)
    # Of a (1 + 0.9) / 2, of b 0: 0.475 under the first seed, 0.3 under the second.
    seeds = patient_scores.tabulate_seeds(variant, "test", "dice")
    np.testing.assert_allclose(seeds.to_numpy(), [[0.475, 0.3], [nan, 0.3]])
    assert patient_scores.tabulate_variants([variant], "test", "dice")[
        "kv"
    ].to_dict() == pytest.approx({"p": 0.3875, "q": 0.3})
    only_b = patient_scores.tabulate_variants([variant], "test", "dice", ["b"])["kv"]
    assert only_b["p"] == pytest.approx((0.0 + 0.3) / 2)
    assert patient_scores.count_undefined(variant, "test", "dice") == 3
    assert patient_scores.count_undefined(variant, "test", "dice", ["a"]) == 1


def test_names_of_patients_are_text(tmp_path):
    (variant,) = group_runs([make_run(tmp_path, "kv", DICE)])
    assert patient_scores.tabulate_variants([variant], "test", "dice")["kv"].to_dict() == DICE


def test_a_weighted_metric_weights_classes_by_their_true_voxels_in_all_cases():
    rows = [
        # patient, case, class, Jaccard, true voxels: 300 of a, 100 of b in all
        ("p", "p0", "a", 0.8, 200), ("p", "p0", "b", 0.4, 100),
        ("q", "q0", "a", 0.5, 100), ("q", "q0", "b", float("nan"), 0),
    ]  # fmt: skip
    scores = pd.DataFrame(
        [
            {"split": "test", "patient": p, "case": c, "class": k, "metric": metric, "value": value}
            for p, c, k, jaccard, voxels in rows
            for metric, value in (("jaccard", jaccard), ("truth_voxels", voxels))
        ]
    )
    run = SimpleNamespace(cases=scores, profile={})
    found = patient_scores.average_patients(run, "test", "weighted_jaccard")
    assert found.to_dict() == pytest.approx(
        {"p": 0.75 * 0.8 + 0.25 * 0.4, "q": 0.75 * 0.5 + 0.25 * 0.4}
    )
    assert patient_scores.average_patients(run, "test", "jaccard").to_dict() == pytest.approx(
        {"p": 0.6, "q": (0.5 + 0.4) / 2}
    )
    assert len(patient_scores.select_scores(run, "test", "weighted_jaccard")) == 4
    # The page's case browser shows the same.
    shown = cases.tabulate_cases(
        [SimpleNamespace(name="kv", runs=[run])], "test", "weighted_jaccard"
    )
    assert shown["kv"].to_dict() == pytest.approx({("p0", "p"): 0.7, ("q0", "q"): 0.5})
