"""Finished runs: found, read and grouped into variants."""

import pytest

from attnseg.errors import ConfigError, DataError
from attnseg.runs.variants import find_runs, group_by_variant, match_baselines, open_finished_runs
from tests.study.folders import make_run

BY = ("model", "attn")
DICE = {"007": 0.8, "7": 0.6, "NA": 0.7}


def grouped(folders, by=BY):
    return group_by_variant(open_finished_runs(folders), by)


def test_runs_are_found_by_path_and_glob_once(tmp_path):
    one = make_run(tmp_path, "kv", DICE)
    two = make_run(tmp_path, "qkv", DICE)
    (tmp_path / "qkv" / "notes.txt").touch()
    assert [run.path for run in find_runs([str(one), f"{tmp_path}/*/*"])] == [one, two]
    with pytest.raises(ConfigError, match="runs: none given"):
        find_runs([])
    with pytest.raises(DataError) as raised:
        find_runs([f"{tmp_path}/x*", str(one), f"{tmp_path}/y"])
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
        open_finished_runs([running, lacking, odd, torn, fine])
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
    assert match_baselines(named, "qkv") == match_baselines(named, "setr/qkv") == others
    with pytest.raises(ConfigError, match="no variant is qk; choose one of qkv, kv"):
        match_baselines(variants, "qk")


def test_each_variant_has_the_baseline_that_is_like_it(tmp_path):
    folders = [
        make_run(tmp_path / model, attn, DICE, model=model)
        for model in ("setr", "cvt")
        for attn in ("kv", "qkv", "kv_pos")
    ]
    expected = {
        f"{model}/{attn}": f"{model}/qkv" for model in ("setr", "cvt") for attn in ("kv", "kv_pos")
    }
    assert match_baselines(grouped(folders), "qkv") == expected
    with pytest.raises(ConfigError, match="several variants are qkv, none of them like dae/kv"):
        match_baselines(
            grouped([*folders, make_run(tmp_path / "d", "kv", DICE, model="dae")]), "qkv"
        )


def test_variants_by_a_chosen_key(tmp_path):
    small = make_run(tmp_path, "kv", DICE)
    base = make_run(tmp_path, "kv", DICE, name="b", config={"model": {"size": "base"}})
    assert [v.name for v in grouped([small, base], ["model.size"])] == ["tiny", "base"]
    with pytest.raises(ConfigError, match=r"has no 'model\.depth'"):
        grouped([small], ["model.depth"])
