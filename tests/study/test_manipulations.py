"""Planted manipulations of finished runs: each is refused, or named among the doubts."""

import hashlib
import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from attnseg.config.identity import short_digest
from attnseg.data.closed_test import digest_test_set, record_opening, record_scored_masks
from attnseg.errors import DataError
from attnseg.runs.facts import RunFacts
from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import group_by_variant, open_finished_runs
from attnseg.study.checks import check_comparable
from attnseg.study.compare import compare_runs
from attnseg.study.doubts import collect_doubts

PROFILE = {"name": "strict", "digest": "94e58393", "nsd_tolerance_mm": 3.0}
CASES = [(f"p{i}", f"p{i}_d{scan}") for i in range(6) for scan in range(2)]
METRICS = ("dice", "hd95_mm", "truth_voxels")
STUDY = {"baseline": "qkv", "by": ["model", "attn"], "metrics": [], "margin": 0.02}
DECLARED = {**STUDY, "digest": short_digest(STUDY)}
SPLIT = [(p, c, "test", hashlib.sha256(c.encode()).hexdigest()) for p, c in CASES]
SPLIT.append(("p9", "p9_d0", "val", hashlib.sha256(b"val").hexdigest()))


@pytest.fixture
def place(tmp_path):
    """Two variants with two seeds each, sealed as real runs are, and their ledgers."""
    (tmp_path / "images").mkdir()
    for attn in ("qkv", "kv"):
        for seed in (0, 1):
            make_sealed_run(tmp_path, attn, seed)
    return tmp_path


def make_sealed_run(place, attn, seed):
    folder = RunFolder(place / "outputs" / "organs" / "setr" / attn / f"{attn}{seed}id")
    folder.path.mkdir(parents=True)
    rng = np.random.default_rng([len(attn), seed])
    rows = [
        (split, patient, case, name, metric, value, "strict")
        for patient, case, split, _ in SPLIT
        for name in ("liver", "duct")
        for metric, value in zip(
            METRICS, (rng.uniform(0.5, 1), rng.uniform(1, 9), 90.0), strict=True
        )
    ]
    columns = ["split", "patient", "case", "class", "metric", "value", "profile"]
    pd.DataFrame(rows, columns=columns).to_csv(folder.cases_file, index=False)
    scored = {"mean": {"dice": 0.7, "hd95_mm": 5.0}}
    folder.metrics_file.write_text(json.dumps({"profile": PROFILE, "val": scored, "test": scored}))
    table = pd.DataFrame(SPLIT, columns=["patient", "case", "role", "digest"])
    folder.split_file.write_text(text := table.to_csv(index=False, lineterminator="\n"))
    dataset = {"root": str(place / "images"), "split": {"folds": None, "fold": 0, "seed": 0}}
    config = {"seed": seed, "dataset": dataset, "model": {"size": "tiny"}, "attn": {"name": attn}}
    folder.config_file.write_text(yaml.safe_dump(config))
    digest = digest_test_set(row[3] for row in SPLIT if row[2] == "test")
    ledger = place / "data" / "test_openings" / f"{digest}.jsonl"
    beside = place / "outputs" / "organs" / "test_openings.jsonl"
    record_opening(digest, (ledger, beside), str(folder), "scored after training")
    facts = RunFacts(
        id=folder.name, status="done", seed=seed, profile=PROFILE,
        choices={"model": "setr", "attn": attn, "dataset": "organs"},
        parameters={"total": 10}, macs=10, versions={"attnseg": "0.2.0", "torch": "2.9"},
        git={"commit": "c0ffee" * 6, "modified": False},
        machine={"device": "cpu", "threads": 2},
        data_digest=hashlib.sha256("".join(row[3] for row in SPLIT).encode()).hexdigest(),
        split_digest=hashlib.sha256(text.encode()).hexdigest(),
        checkpoints={"best.ckpt": hashlib.sha256(folder.name.encode()).hexdigest()},
        test_set={"digest": digest, "openings": len(ledger.read_text().splitlines()),
                  "ledger": str(ledger)},
        results=folder.digest_results(), declared=DECLARED,
    )  # fmt: skip
    folder.facts_file.write_text(facts.to_json())
    return folder


def folders(place):
    return [path.parent for path in sorted(place.glob("outputs/*/setr/*/*/run.json"))]


def outcome(place, split="test", runs=None):
    """Return what a comparison refuses, and what it doubts."""
    try:
        opened = open_finished_runs(runs or folders(place))
        variants = group_by_variant(opened, ("model", "attn"))
        check_comparable(variants, split)
    except DataError as error:
        return error.problems, []
    return [], collect_doubts(variants, split)


def run(place, name="kv0id"):
    return next(path for path in folders(place) if path.name == name)


def edit(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)


def edit_facts(path, reseal=False, **changes):
    """Change facts by hand; `reseal` makes the folder one of a version without seals instead."""
    facts = json.loads((path / "run.json").read_text()) | changes
    if reseal:
        facts = {key: value for key, value in facts.items() if key not in ("seal", "results")}
    (path / "run.json").write_text(json.dumps(facts))


def unseal(place):
    for path in folders(place):
        edit_facts(path, reseal=True)


def edit_scores(place, change, *names):
    """Change the scores of some runs, all of them without digests."""
    unseal(place)
    for name in names or ("kv0id",):
        path = run(place, name) / "cases.csv"
        change(pd.read_csv(path, dtype={"value": object})).to_csv(path, index=False)


def where(table, **values):
    chosen = table["split"] == "test"
    for column, value in values.items():
        chosen &= table[column.rstrip("_")] == value
    return chosen


def put(value, **values):
    def change(table):
        table.loc[where(table, **values), "value"] = value
        return table

    return change


def without(**values):
    return lambda table: table[~where(table, **values)]


def copy_run(place, name, seed, attn="kv", **changes):
    """Copy `kv0id` as a run of another seed or attention, and edit all of its files to match."""
    source = run(place)
    target = source.parents[1] / attn / name
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    config = yaml.safe_load((target / "config.yaml").read_text())
    (target / "config.yaml").write_text(yaml.safe_dump({**config, "seed": seed}))
    choices = {"model": "setr", "attn": attn, "dataset": "organs"}
    edit_facts(target, reseal=True, seed=seed, choices=choices, **changes)
    return target


def copy_with_a_few_changes(place):
    target = copy_run(place, "kv7id", 7, id="kv7id", checkpoints={})
    table = pd.read_csv(target / "cases.csv")
    table.loc[table.index[::5], "value"] *= 0.99
    table.to_csv(target / "cases.csv", index=False)
    shutil.rmtree(run(place, "kv1id"))


def move_case(table):
    table.loc[where(table, case="p1_d1"), "patient"] = "p2"
    return table


def double_row(table):
    return pd.concat([table, table[where(table, case="p1_d1", class_="duct", metric="dice")]])


def rename_class(table):
    return table.replace({"class": {"duct": "vein"}})


def add_case(table):
    extra = table[where(table, case="p1_d1")].assign(case="p1_d7")
    return pd.concat([table, extra])


def ledgers(place):
    return [*place.glob("data/test_openings/*.jsonl"), *place.glob("outputs/*/*.jsonl")]


def open_again(place, times=1, only_data=False):
    digest = json.loads((run(place) / "run.json").read_text())["test_set"]["digest"]
    for _ in range(times):
        record_opening(digest, ledgers(place)[: 1 if only_data else 2], "pred", "evaluate strict")


def score_masks(place):
    (ledger,) = place.glob("data/test_openings/*.jsonl")
    ledger.with_suffix(".masks").write_text("abc\ndef\n")
    assert record_scored_masks(place / "data", ["def"], "pred", "evaluate pred=pred") == 1


def cut_ledgers(place):
    for path in ledgers(place):
        path.write_text(path.read_text().split("\n", 1)[1])


ALL = ("kv0id", "kv1id", "qkv0id", "qkv1id")
OTHER_GIT = {"commit": "decaf0" * 6, "modified": False}
REFUSED = {
    # rows
    "rows of one run deleted": (
        lambda p: edit(run(p) / "cases.csv", ("test,p3,", "val,p3,")), "cases.csv: changed since"),
    "rows of an old run deleted": (
        lambda p: edit_scores(p, without(case="p3_d1")), "lacks"),
    "one metric of the worst case deleted": (
        lambda p: edit_scores(p, without(case="p3_d1", metric="dice", class_="duct")),
        "lacks dice"),
    "a case deleted in all old runs": (
        lambda p: edit_scores(p, without(case="p3_d1"), *ALL),
        "lacks test case p3_d1 of patient p3"),
    "a case added to all old runs": (
        lambda p: edit_scores(p, add_case, *ALL), "has test case p1_d7 of patient p1"),
    "a case given to another patient": (lambda p: edit_scores(p, move_case, *ALL), "p1_d1"),
    "a row doubled": (
        lambda p: edit_scores(p, double_row), "two rows of dice of case p1_d1, class duct"),
    # values
    "scores raised": (
        lambda p: edit(run(p) / "cases.csv", ("dice,0.", "dice,0.9")), "cases.csv: changed since"),
    "Dice of 1.7": (
        lambda p: edit_scores(p, put("1.7", case="p2_d0", metric="dice")), "1.7, not from 0 to 1"),
    "Dice below 0": (
        lambda p: edit_scores(p, put("-0.2", case="p2_d0", metric="dice")), "-0.2, not from 0"),
    "an infinite distance": (
        lambda p: edit_scores(p, put("inf", case="p2_d0", metric="hd95_mm")), "a finite number"),
    "a negative distance": (
        lambda p: edit_scores(p, put("-3", case="p2_d0", metric="hd95_mm")),
        "hd95_mm of case p2_d0"),
    "text for a number": (
        lambda p: edit_scores(p, put("good", case="p2_d0", metric="dice")), "cannot be read"),
    "the mean in metrics.json raised": (
        lambda p: edit(run(p) / "metrics.json", ("0.7", "0.8")), "metrics.json: changed since"),
    # names
    "a class renamed in one run": (lambda p: edit_scores(p, rename_class), "class vein"),
    "the attention renamed": (
        lambda p: edit_facts(run(p), choices={"model": "setr", "attn": "qkv", "dataset": "organs"}),
        "run.json: changed since"),
    "scores of another profile": (
        lambda p: edit_scores(p, lambda t: t.replace({"profile": {"strict": "monai"}})),
        "another metric profile"),
    "the profile's digest edited": (
        lambda p: [edit_facts(f, reseal=True, profile={**PROFILE, "digest": "0" * 8})
                   for f in folders(p)], "another metric profile"),
    # seeds
    "a run copied as another seed": (
        lambda p: copy_run(p, "kv1id", 1), "kv1id: the same weights; one is a copy"),
    "a run copied, its weights forgotten": (
        lambda p: copy_run(p, "kv1id", 1, checkpoints={}), "the same run id"),
    "a run copied, its weights and id forgotten": (
        lambda p: copy_run(p, "kv1id", 1, checkpoints={}, id="x"), "the same scores throughout"),
    "a run copied as another variant": (
        lambda p: copy_run(p, "mine", 1, attn="qkv2", id="mine"), "the same weights"),
    "the seed edited in run.json": (
        lambda p: edit_facts(run(p), seed=5), "run.json: changed since"),
    "the seed edited in an old run": (
        lambda p: edit_facts(run(p), reseal=True, seed=5), "seed 0, but 5 in run.json"),
    "the learning rate edited": (
        lambda p: edit(run(p) / "config.yaml", ("tiny", "base")), "config.yaml: changed since"),
    # splits and digests
    "a patient's role edited": (
        lambda p: edit(run(p) / "split.csv", ("p9,p9_d0,val", "p9,p9_d0,test")),
        "split.csv: changed"),
    "a role edited in an old run": (
        lambda p: [unseal(p), edit(run(p) / "split.csv", ("p9_d0,val", "p9_d0,test"))],
        "not the split that run.json describes"),
    "split.csv removed": (lambda p: (run(p) / "split.csv").unlink(), "split.csv: missing"),
    "the test set's digest edited in all old runs": (
        lambda p: [edit_facts(f, reseal=True, test_set={"digest": "t" * 64, "openings": 4})
                   for f in folders(p)], "not the split that run.json describes"),
    "a digest fitted to the edited scores": (
        lambda p: edit_facts(run(p), results={}), "run.json: changed since"),
}  # fmt: skip
NAMED = {
    "digests and seal removed": (unseal, "4 of 4 runs have no digests of their results"),
    "the declared margin widened in all old runs": (
        lambda p: [edit_facts(f, reseal=True, declared={**DECLARED, "margin": 0.1})
                   for f in folders(p)],
        "the comparison that it declares does not match the digest"),
    "a copy with a few other scores": (copy_with_a_few_changes, "equal to the last digit"),
    "the scores of another variant, everything else forgotten": (
        lambda p: copy_run(p, "mine", 1, attn="qkv2", id="mine", checkpoints={}),
        "two variants have the same scores throughout"),
    "validation scores": (lambda p: None, "validation cases, which chose the best epoch"),
    "the ledger removed": (lambda p: ledgers(p)[0].unlink(), "this ledger of openings"),
    "lines removed from both ledgers": (cut_ledgers, "lines were removed"),
    "opened after the runs": (
        lambda p: open_again(p, 2),
        "opened 6 times, for 4 runs in this comparison, 2 of them after"),
    "other outputs": (
        lambda p: [open_again(p, 3, only_data=True), ledgers(p)[1].unlink()], "opened 7 times"),
    "masks scored without a run": (score_masks, "opened 5 times"),
    "other code": (
        lambda p: edit_facts(run(p), reseal=True, git=OTHER_GIT),
        "of different commits of the code"),
    "modified code": (
        lambda p: edit_facts(run(p), reseal=True, git={"commit": "c0ffee" * 6, "modified": True}),
        "the code of 1 of 4 runs had changes that no commit holds"),
    "another torch": (
        lambda p: edit_facts(run(p), reseal=True, versions={"attnseg": "0.2.0", "torch": "2.8"}),
        "different versions of torch: 2.8, 2.9"),
    "generated data": (
        lambda p: (p / "images" / "phantom.json").touch(), "the data of organs are generated"),
}  # fmt: skip


def test_honest_runs_are_compared_without_a_doubt(place):
    assert outcome(place) == ([], [])


def test_every_planted_manipulation_is_refused_or_named(tmp_path_factory):
    assert len(REFUSED) >= 30
    missed = []
    original = tmp_path_factory.mktemp("honest")
    (original / "images").mkdir()
    for attn in ("qkv", "kv"):
        for seed in (0, 1):
            make_sealed_run(original, attn, seed)
    for name, (plant, message) in [*REFUSED.items(), *NAMED.items()]:
        place = tmp_path_factory.mktemp("planted") / "place"
        shutil.copytree(original, place)
        for path in folders(place):  # the ledger and the images are those of this copy
            text = (path / "run.json").read_text().replace(str(original), str(place))
            config = (path / "config.yaml").read_text().replace(str(original), str(place))
            (path / "config.yaml").write_text(config)
            facts = RunFacts.from_json(text)
            facts.results = RunFolder(path).digest_results()
            (path / "run.json").write_text(facts.to_json())
        plant(place)
        problems, doubts = outcome(place, "val" if name == "validation scores" else "test")
        said = problems if name in REFUSED else doubts
        if not any(message in text for text in said) or (name in NAMED and problems):
            missed.append((name, problems, doubts))
    assert not missed, "\n".join(map(repr, missed))


def test_doubts_stand_before_all_other_warnings_and_openings_are_counted_when_comparing(place):
    open_again(place, 3)
    found = compare_runs([f"{place}/outputs/*/*/*/*"], outputs=place / "out")
    assert found.warnings[0].startswith("the test set was opened 7 times, for 4 runs")
    assert any("The test set was opened 7 times up to now." in note for note in found.notes)
    assert "opened 7 times, for 4 runs" in (place / "out" / "comparison.html").read_text()


def test_a_run_that_is_moved_or_read_by_this_version_keeps_its_seal(place, tmp_path):
    text = (run(place) / "run.json").read_text()
    assert RunFacts.from_json(text).to_json() == text
    logging.getLogger("attnseg").propagate = True
    shutil.move(place / "outputs", tmp_path / "elsewhere")
    moved = sorted(path.parent for path in (tmp_path / "elsewhere").rglob("run.json"))
    assert outcome(place, runs=moved) == ([], [])
