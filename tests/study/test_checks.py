"""Refusal of runs that do not compare, and warnings about what else differs."""

import json

import pytest

from attnseg.config.identity import affects_comparison
from attnseg.errors import DataError
from attnseg.runs.variants import group_by_variant, match_baselines, open_finished_runs
from attnseg.study import patient_scores
from attnseg.study.checks import check_comparable, warn_of_differences
from tests.study.folders import PROFILE, make_run

BY = ("model", "attn")
DICE = {"007": 0.8, "7": 0.6, "NA": 0.7}


def group_runs(folders, by=BY):
    return group_by_variant(open_finished_runs(folders), by)


def problems(folders, split="test"):
    with pytest.raises(DataError) as raised:
        check_comparable(group_runs(folders), split)
    return raised.value.problems


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


def vary(number):
    return {patient: value + number / 100 for patient, value in DICE.items()}


def test_converted_networks_are_a_variant_of_their_own(tmp_path):
    """Each has a parent of its own, and the seed of a network that was trained from scratch."""
    trained = [
        make_run(tmp_path, attn, vary(seed), seed=seed, config={"conversion": None})
        for attn in ("qkv", "kv")
        for seed in (0, 1)
    ]
    converted = [
        make_run(
            tmp_path, "kv", vary(seed + 2), seed=seed, name=f"of-{seed}",
            config={"conversion": {"parent": str(trained[seed]), "surgery": "solve"}},
        )
        for seed in (0, 1)
    ]  # fmt: skip
    folders = [*trained, *converted]
    assert "both kv with seed 0 on one split" in problems(folders)[0]
    by = ("attn", "conversion")
    variants = group_runs(folders, by)
    check_comparable(variants, "test")
    names = ["qkv/scratch", "kv/scratch", "kv/converted"]
    assert [(v.name, v.seeds) for v in variants] == [(name, {0, 1}) for name in names]
    others = {"kv/scratch": "qkv/scratch", "kv/converted": "qkv/scratch"}
    assert match_baselines(variants, "qkv") == others
    assert not any("conversion" in warning for warning in warn_of_differences(variants, by))


def test_a_split_without_scores_is_refused(tmp_path):
    runs = [make_run(tmp_path, attn, DICE, split="val") for attn in ("qkv", "kv")]
    check_comparable(group_runs(runs), "val")
    assert len(problems(runs, "test")) == 2


def test_folds_of_one_division_belong_together(tmp_path):
    folds = {0: {"a": 0.5, "b": 0.7}, 1: {"c": 0.9}}

    def run(attn, fold, **changes):
        options = {"folds": 2, "test_set": f"t{fold}", "name": f"f{fold}", **changes}
        return make_run(tmp_path, attn, folds[fold], fold=fold, **options)

    both = [run("qkv", 0), run("qkv", 1), run("kv", 0)]
    (found,) = problems(both)
    assert f"{both[2]} and {both[1]}: kv was not trained on the split of the second" in found
    variants = group_runs([*both, run("kv", 1)])
    check_comparable(variants, "test")
    table = patient_scores.tabulate_variants(variants, "test", "dice")
    assert table["kv"].to_dict() == {"a": 0.5, "b": 0.7, "c": 0.9}
    strange = [run("qkv", 0, name="x"), run("qkv", 1, name="y", folds=3)]
    assert "not folds of one division" in problems(strange)[0]


def test_what_else_differs_is_said(tmp_path):
    runs = [
        make_run(tmp_path, "qkv", DICE),
        make_run(tmp_path, "kv", DICE, config={"optimizer": {"lr": 0.01}}),
        make_run(tmp_path, "kv", DICE, seed=1, config={"model": {"size": "base"}}),
    ]
    facts = json.loads((runs[1] / "run.json").read_text())
    facts["machine"]["threads"] = 16
    (runs[1] / "run.json").write_text(json.dumps(facts))
    found = warn_of_differences(group_runs(runs), BY)
    assert found[:2] == [
        "runs differ in model.size, too: base, tiny",
        "runs differ in optimizer.lr, too: 0.001, 0.01",
    ]
    assert "one seed of qkv:" in found[2]
    assert "different seeds: qkv [0], kv [0, 1]" in found[3]
    assert "different machines" in found[4]
    same = group_runs(
        [make_run(tmp_path / "b", a, DICE, seed=s) for a in ("qkv", "kv") for s in (0, 1)]
    )
    assert warn_of_differences(same, BY) == []


def test_where_a_run_happened_does_not_matter_and_what_it_learnt_with_does():
    harmless = ("seed", "paths.outputs", "trainer.devices", "dataset.split.fold", "dataset.root")
    assert not any(affects_comparison(key) for key in harmless)
    assert all(affects_comparison(key) for key in ("optimizer.lr", "dataset.split.seed", "seeds"))
