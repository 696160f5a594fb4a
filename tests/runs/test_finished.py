"""Runs found, grouped, and refused when their numbers must not be compared."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from attnseg.errors import ConfigError, DataError
from attnseg.metrics import profiles
from attnseg.runs.finished import baselines, find, group, load
from attnseg.study import cases, comparable, values
from attnseg.study.metric import LOWER, SIGNED, choose
from tests.study.folders import PROFILE, make_run

BY = ("model", "attn")
DICE = {"007": 0.8, "7": 0.6, "NA": 0.7}


def grouped(folders, by=BY):
    return group(load(folders), by)


def problems(folders, split="test"):
    with pytest.raises(DataError) as raised:
        comparable.check(grouped(folders), split)
    return raised.value.problems


def test_runs_are_found_by_path_and_glob_once(tmp_path):
    one = make_run(tmp_path, "kv", DICE)
    two = make_run(tmp_path, "qkv", DICE)
    (tmp_path / "qkv" / "notes.txt").touch()
    assert find([str(one), f"{tmp_path}/*/*"]) == [one, two]
    with pytest.raises(ConfigError, match="runs: none given"):
        find([])
    with pytest.raises(DataError) as raised:
        find([f"{tmp_path}/x*", str(one), f"{tmp_path}/y"])
    assert len(raised.value.problems) == 2
    assert f"{tmp_path}/y: no run folder" in raised.value.problems[1]


def test_unfinished_and_broken_runs_are_all_named(tmp_path):
    running = make_run(tmp_path, "kv", DICE, status="running")
    lacking = make_run(tmp_path, "kv", DICE, seed=1)
    (lacking / "cases.csv").unlink()
    odd = make_run(tmp_path, "kv", DICE, seed=2)
    (odd / "cases.csv").write_text("a,b\n1,2\n")
    torn = make_run(tmp_path, "kv", DICE, seed=3)
    (torn / "run.json").write_text('{"status"')
    fine = make_run(tmp_path, "kv", DICE, seed=4)
    with pytest.raises(DataError) as raised:
        load([running, lacking, odd, torn, fine])
    found = raised.value.problems
    assert len(found) == 4
    assert found[0] == f"{running}: not finished, its status is running; leave it out"
    assert f"{lacking}/cases.csv: cannot be read" in found[1]
    assert f"{odd}/cases.csv: no column split, patient" in found[2]
    assert f"{torn}/run.json: cannot be read" in found[3]


def test_variants_are_named_by_what_differs(tmp_path):
    folders = [make_run(tmp_path, attn, DICE, seed=s) for attn in ("qkv", "kv") for s in (0, 1)]
    variants = grouped(folders)
    assert [(v.name, sorted(v.seeds)) for v in variants] == [("qkv", [0, 1]), ("kv", [0, 1])]
    other = make_run(tmp_path / "cvt", "kv", DICE, model="cvt")
    named = grouped([*folders, other])
    assert [v.name for v in named] == ["setr/qkv", "setr/kv", "cvt/kv"]
    others = {"setr/kv": "setr/qkv", "cvt/kv": "setr/qkv"}
    assert baselines(named, "qkv") == baselines(named, "setr/qkv") == others
    with pytest.raises(ConfigError, match="no variant is qk; choose one of qkv, kv"):
        baselines(variants, "qk")


def test_each_variant_has_the_baseline_that_is_like_it(tmp_path):
    folders = [
        make_run(tmp_path / model, attn, DICE, model=model)
        for model in ("setr", "cvt")
        for attn in ("kv", "qkv", "kv_pos")
    ]
    expected = {
        f"{model}/{attn}": f"{model}/qkv" for model in ("setr", "cvt") for attn in ("kv", "kv_pos")
    }
    assert baselines(grouped(folders), "qkv") == expected
    with pytest.raises(ConfigError, match="several variants are qkv, none of them like dae/kv"):
        baselines(grouped([*folders, make_run(tmp_path / "d", "kv", DICE, model="dae")]), "qkv")


def test_variants_by_a_chosen_key(tmp_path):
    small = make_run(tmp_path, "kv", DICE)
    base = make_run(tmp_path, "kv", DICE, name="b", config={"model": {"size": "base"}})
    assert [v.name for v in grouped([small, base], ["model.size"])] == ["tiny", "base"]
    with pytest.raises(ConfigError, match=r"has no 'model\.depth'"):
        grouped([small], ["model.depth"])


def test_each_reason_to_refuse_names_both_folders(tmp_path):
    honest = make_run(tmp_path, "qkv", DICE)
    cases = {
        "different data": {"data": "other"},
        "profiles strict (94e58393) and strict (00000000)": {
            "profile": {**PROFILE, "digest": "00000000"}
        },
        "profiles strict (94e58393) and monai (94e58393)": {
            "profile": {**PROFILE, "name": "monai"}
        },
        "different test cases": {"test_set": "u"},
        "marked 'WATCHED'": {"watermark": "WATCHED"},
    }
    for i, (what, change) in enumerate(cases.items()):
        other = make_run(tmp_path, "kv", DICE, name=str(i), **change)
        (found,) = problems([honest, other])
        assert what in found
        assert f"{honest} and {other}: " in found


def test_all_problems_are_named_at_once(tmp_path):
    honest = make_run(tmp_path, "qkv", DICE)
    other = make_run(tmp_path, "kv", DICE, data="o", test_set="u", watermark="WATCHED")
    again = make_run(tmp_path, "qkv", DICE, name="0-2")
    found = problems([honest, other, again])
    assert len(found) == 4
    assert f"{honest} and {again}: both qkv with seed 0" in found[3]
    assert all(str(other) in problem for problem in found[:3])


def test_a_split_without_scores_is_refused(tmp_path):
    runs = [make_run(tmp_path, attn, DICE, split="val") for attn in ("qkv", "kv")]
    comparable.check(grouped(runs), "val")
    assert len(problems(runs, "test")) == 2


def test_folds_of_one_division_belong_together(tmp_path):
    folds = {0: {"a": 0.5, "b": 0.7}, 1: {"c": 0.9}}

    def run(attn, fold, **changes):
        options = {"folds": 2, "test_set": f"t{fold}", "name": f"f{fold}", **changes}
        return make_run(tmp_path, attn, folds[fold], fold=fold, **options)

    both = [run("qkv", 0), run("qkv", 1), run("kv", 0)]
    (found,) = problems(both)
    assert f"{both[2]} and {both[1]}: kv was not trained on the split of the second" in found
    variants = grouped([*both, run("kv", 1)])
    comparable.check(variants, "test")
    table = values.by_variant(variants, "test", "dice")
    assert table["kv"].to_dict() == {"a": 0.5, "b": 0.7, "c": 0.9}
    strange = [run("qkv", 0, name="x"), run("qkv", 1, name="y", folds=3)]
    assert "not folds of one division" in problems(strange)[0]


def test_a_patient_is_the_mean_of_classes_then_cases_then_seeds(tmp_path):
    nan = float("nan")
    first = {
        ("p", "day0", "a"): 1.0, ("p", "day0", "b"): 0.0,
        ("p", "day1", "a"): 0.9, ("p", "day1", "b"): nan,
        ("q", "day0", "a"): nan, ("q", "day0", "b"): nan,
    }  # fmt: skip
    second = {key: 0.3 for key in first}
    runs = [make_run(tmp_path, "kv", v, seed=s) for s, v in enumerate((first, second))]
    (variant,) = grouped(runs)
    # (1 + 0) / 2 and 0.9: 0.7 under the first seed, 0.3 under the second.
    seeds = values.by_seed(variant, "test", "dice")
    np.testing.assert_allclose(seeds.to_numpy(), [[0.7, 0.3], [nan, 0.3]])
    assert values.by_variant([variant], "test", "dice")["kv"].to_dict() == pytest.approx(
        {"p": 0.5, "q": 0.3}
    )
    only_b = values.by_variant([variant], "test", "dice", ["b"])["kv"]
    assert only_b["p"] == pytest.approx((0.0 + 0.3) / 2)
    assert values.undefined(variant, "test", "dice") == 3
    assert values.undefined(variant, "test", "dice", ["a"]) == 1


def test_names_of_patients_are_text(tmp_path):
    (variant,) = grouped([make_run(tmp_path, "kv", DICE)])
    assert values.by_variant([variant], "test", "dice")["kv"].to_dict() == DICE


def test_what_else_differs_is_said(tmp_path):
    runs = [
        make_run(tmp_path, "qkv", DICE),
        make_run(tmp_path, "kv", DICE, config={"optimizer": {"lr": 0.01}}),
        make_run(tmp_path, "kv", DICE, seed=1, config={"model": {"size": "base"}}),
    ]
    facts = json.loads((runs[1] / "run.json").read_text())
    facts["machine"]["threads"] = 16
    (runs[1] / "run.json").write_text(json.dumps(facts))
    found = comparable.warnings(grouped(runs), BY)
    assert found[:2] == [
        "runs differ in model.size, too: base, tiny",
        "runs differ in optimizer.lr, too: 0.001, 0.01",
    ]
    assert "one seed of qkv:" in found[2]
    assert "different seeds: qkv [0], kv [0, 1]" in found[3]
    assert "different machines" in found[4]
    same = grouped(
        [make_run(tmp_path / "b", a, DICE, seed=s) for a in ("qkv", "kv") for s in (0, 1)]
    )
    assert comparable.warnings(same, BY) == []


def test_metric(tmp_path):
    def chosen(metric, wanted=None, profile=PROFILE):
        folder = make_run(tmp_path, "kv", DICE, name=metric + profile["name"], metric=metric,
                          profile=profile)  # fmt: skip
        return choose(load([folder])[0], "test", wanted)

    dice, far = chosen("dice"), chosen("hd95_mm")
    assert (dice.label, dice.unit, dice.up, dice.text(0.12345)) == ("Dice", "Dice", True, "0.1235")
    assert (far.label, far.unit, far.up, far.text(1.234)) == ("HD95 (mm)", "mm", False, "1.23")
    assert chosen("nsd").label == "NSD (3 mm)"
    with pytest.raises(ConfigError, match="does not score nsd case by case; choose one of jaccard"):
        chosen("jaccard", "nsd")
    with pytest.raises(ConfigError, match="volume_error is best at 0"):
        chosen("volume_error")


def test_directions_are_those_of_the_profiles():
    import importlib
    import pkgutil

    from attnseg.metrics.profiles.profile import Profile

    for module in pkgutil.iter_modules(profiles.__path__):
        importlib.import_module(f"attnseg.metrics.profiles.{module.name}")
    found = [(m.name, m.up) for profile in Profile.__subclasses__() for m in profile.metrics]
    assert len(found) > 20
    for name, up in found:
        assert up == (None if name in SIGNED else name not in LOWER), name


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
    run = SimpleNamespace(scores=scores)
    found = values.of_run(run, "test", "weighted_jaccard")
    assert found.to_dict() == pytest.approx({"p": 0.75 * 0.8 + 0.25 * 0.4, "q": 0.5})
    assert values.of_run(run, "test", "jaccard").to_dict() == pytest.approx({"p": 0.6, "q": 0.5})
    assert len(values.select(run, "test", "weighted_jaccard")) == 4
    # The page's case browser shows the same.
    shown = cases.table([SimpleNamespace(name="kv", runs=[run])], "test", "weighted_jaccard")
    assert shown["kv"].to_dict() == pytest.approx({("p0", "p"): 0.7, ("q0", "q"): 0.5})
