"""A conversion is a run like any other: exact, with a parent, a report and a closed test set."""

import json
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from attnseg import cli
from attnseg.commands.convert import ConvertOptions, _changed_trainer, to_options
from attnseg.config.composition import compose, to_raw
from attnseg.config.identity import affects_comparison, run_id
from attnseg.config.training import Conversion, parse_config
from attnseg.data.closed_test import ClosedTest
from attnseg.runs.run_folder import RunFolder
from tests.contracts.groups import FOLDER
from tests.faults.runs import assert_same_end, attempt, attempts, equal, send_at

QUICK = ("trainer.limit_batches=3", "trainer.max_epochs=1", "logger=none")


def find_run(folder: Path, attn: str) -> Path:
    (run,) = [path.parent for path in folder.glob(f"outputs/*/*/{attn}/*/run.json")]
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a tiny QKV run; read only."""
    folder = tmp_path_factory.mktemp("parent")
    assert attempt(folder, *QUICK, "attn=qkv") == 0
    return folder


@pytest.fixture
def home(trained, tmp_path, call):
    """A copy of it, from which commands are called."""
    shutil.copytree(trained / "data", tmp_path / "data")
    shutil.copytree(trained / "outputs", tmp_path / "outputs")
    return tmp_path


def training(folder, parent, *options):
    """Options by which a training run is a conversion."""
    paths = (f"+conversion.parent={parent}", *options)
    return (*QUICK, "trainer.max_epochs=2", "trainer.limit_batches=null", *paths)


def weights(run):
    return torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]


def test_the_command_converts_and_reports(call, home):
    parent = find_run(home, "qkv")
    words = (f"run={parent.relative_to(home)}", "attn=kv", "epochs=2", "trainer.save_minutes=null")
    answer = call(*words, command=cli.convert)
    assert answer.code == 0, answer.err
    run = RunFolder(find_run(home, "kv"))
    assert run.require_done().facts.parent["id"] == parent.name
    report = json.loads(run.conversion_file.read_text())
    before, epochs = RunFolder(parent), list(run.history["val/dice"])
    assert report["dice"]["epochs"] == epochs
    assert len(epochs) == 2
    # The parent's Dice is measured as in its own training.
    best = before.history["val/dice"][before.facts.best_epoch - 1]
    assert report["dice"]["parent"] == pytest.approx(best, abs=1e-6)
    cost = report["cost"]
    assert cost["parent"]["parameters"] == before.facts.parameters["total"]
    assert cost["converted"]["macs"] == run.facts.macs < cost["parent"]["macs"]
    for figures in cost.values():
        assert figures["forward_ms"] > 0
        assert figures["forward_mib"] > 0
        assert figures["forward_joules"] is None or figures["forward_joules"] > 0
    assert f"{cost['converted']['forward_ms']:.3g} ms per image instead of" in answer.out
    assert {tuple(site["tied"]) for site in report["sites"].values()} == {("qk",)}
    assert f"tied: qk of {next(iter(report['sites']))}" in answer.out
    assert f"As good as its parent? {report['compare']}" in answer.out
    openings = pd.read_json(run.facts.test_set["ledger"], lines=True)
    assert len(openings[openings.astype(str).sum(axis=1).str.contains(run.name)]) == 1
    # All else is the parent's.
    ours, theirs = run.raw_config, before.raw_config
    changed = {key for key in ours if ours[key] != theirs.get(key)}
    assert changed == {"attn", "conversion", "trainer", "paths"}  # The copy lies elsewhere.
    assert ours["paths"] == {**theirs["paths"], "outputs": str(home / "outputs")}
    differing = {key for key in ours["trainer"] if ours["trainer"][key] != theirs["trainer"][key]}
    assert differing <= {"max_epochs", "save_minutes"}
    program, verb, *rest = report["compare"].replace("'", "").split()
    assert (program, verb) == ("attnseg", "compare")
    compared = call(*rest, command=cli.compare)
    assert compared.code == 0, compared.err
    assert "conversion.parent" not in compared.out
    again = call(*words, command=cli.convert)
    assert "Done before, not run again" in again.out
    assert json.loads(run.conversion_file.read_text()) == report


def test_surgery_alone_is_a_run_that_predicts_and_can_be_converted_back(call, home):
    parent = find_run(home, "qkv")
    answer = call(f"run={parent}", "attn=kv", "epochs=0", "surgery=query", command=cli.convert)
    assert answer.code == 0, answer.err
    run = RunFolder(find_run(home, "kv"))
    report = json.loads(run.conversion_file.read_text())
    assert report["dice"]["epochs"] == []
    before, after = weights(parent), weights(run.path)
    name = "model.encoder.0.attn.project.{}.linear.weight"
    assert torch.equal(after[name.format("qk")], before[name.format("q")])
    assert torch.equal(after[name.format("v")], before[name.format("v")])
    assert equal(run.model().state_dict(), {n.removeprefix("model."): t for n, t in after.items()})
    scored = call(f"run={run}", "split=val", command=cli.evaluate)
    assert scored.code == 0, scored.err
    first, second = (
        pd.read_csv(path).query("split == 'val'").reset_index()["value"]
        for path in (run.cases_file, run.evaluation / "val/cases.csv")
    )
    pd.testing.assert_series_equal(first, second)
    back = call(f"run={run}", "attn=qkv", "epochs=0", "seed=0", command=cli.convert)
    assert back.code == 2
    assert "seed: a conversion keeps it as it is in its parent; leave it out" in back.err
    back = call(f"run={run}", "attn=kv_pos", "epochs=0", command=cli.convert)
    assert back.code == 0, back.err
    report = json.loads((find_run(home, "kv_pos") / "conversion.json").read_text())
    # With the temperature 1 and no position bias, KV+Pos computes what KV did.
    assert report["dice"]["surgery"] == pytest.approx(report["dice"]["parent"], abs=1e-4)
    assert {tuple(site["neutral"]) for site in report["sites"].values()} == {("mix.weight",)}


def test_killed_and_repeated_to_the_same_end(trained, tmp_path):
    parent = find_run(trained, "qkv")
    first, other = tmp_path / "first", tmp_path / "other"
    for folder in (first, other):
        folder.mkdir()
        (folder / "data").symlink_to(trained / "data")
    options = training(trained, parent)
    assert attempt(first, *options) == 0
    kill = send_at("step", 18, signal.SIGKILL)
    assert attempt(other, *options, fault=kill) == -signal.SIGKILL
    assert attempt(other, *options) == 0
    one, two = find_run(first, "kv"), find_run(other, "kv")
    assert one.name == two.name
    assert_same_end(one, two)
    before, after = (json.loads((run / "conversion.json").read_text()) for run in (one, two))
    assert {**before, "compare": ""} == {**after, "compare": ""}


def test_the_test_patients_are_not_seen(trained, tmp_path, monkeypatch):
    """Neither surgery nor distillation opens the test set."""
    (tmp_path / "data").symlink_to(trained / "data")
    options = training(trained, find_run(trained, "qkv"), "trainer.open_test=false")
    monkeypatch.setattr(ClosedTest, "open", lambda *a: 1 / 0)
    assert attempt(tmp_path, *options, "trainer.limit_batches=2", "trainer.max_epochs=1") == 0


def test_other_data_than_those_of_the_parent_are_refused(trained, tmp_path):
    (tmp_path / "data").symlink_to(trained / "data")
    options = training(trained, find_run(trained, "qkv"), "dataset.split.seed=7")
    assert attempt(tmp_path, *options) == 3
    assert "trained on other cases, or with another split" in (tmp_path / "output").read_text()


def test_published_weights_are_converted(trained, tmp_path, call):
    """A run without training keeps the weights that it was scored with."""
    source = find_run(trained, "qkv")
    (tmp_path / "data").symlink_to(trained / "data")
    published = (f"model.pretrained={source}", "trainer.max_epochs=0", "attn=qkv")
    assert attempt(tmp_path, *QUICK, *published) == 0
    parent = find_run(tmp_path, "qkv")
    own, given = weights(parent), weights(source)
    assert all(torch.equal(own[n], given[n]) for n in own if "num_batches" not in n)
    answer = call(f"run={parent}", "attn=window", "epochs=0", command=cli.convert)
    assert answer.code == 0, answer.err
    run = find_run(tmp_path, "window")
    assert RunFolder(run).config.model.pretrained is None
    name = "model.encoder.0.attn.project.q.linear.weight"
    assert torch.equal(weights(run)[name], weights(source)[name])


def test_two_processes_convert_as_one(trained, tmp_path):
    (tmp_path / "data").symlink_to(trained / "data")
    parent = find_run(trained, "qkv")
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32", "augment=none")
    options = training(trained, parent, "trainer.max_epochs=1", "dataset.batch_size=2", *two)
    assert attempts(2, tmp_path, *options, "trainer.num_workers=0") == [0, 0]
    history = RunFolder(find_run(tmp_path, "kv")).history
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "data").symlink_to(trained / "data")
    options = training(trained, parent, "trainer.max_epochs=1", "augment=none")
    assert attempt(alone, *options) == 0
    same = RunFolder(find_run(alone, "kv")).history
    assert history["val/loss"][0] == pytest.approx(same["val/loss"][0], abs=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attn=kv", "model.depth=3"], "model.depth: a conversion keeps it"),
        (["attn=kv", "model=cvt"], "model: a conversion keeps it"),
        (["attn=kv", "++seed=3"], "seed: a conversion keeps it"),
        (["epochs=3"], "attn: missing; give the new attention"),
        (["attn=kv", "trainer.max_epochs=3"], "trainer.max_epochs: not here; use epochs=N"),
        (["attn=none"], "attn: SETR needs an attention"),
        (["attn=kv", "surgery=value", "epochs=0"], "surgery: the value shares no projection; use"),
        (["attn=kv", "surgery=best"], "convert.surgery: 'best' is not allowed"),
        (["attn=kv", "logits=-1"], "convert.logits: -1 is not allowed"),
        (["attn=kv", "trainer.compile=default"], "trainer.compile: a conversion compares"),
    ],
)
def test_what_a_conversion_does_not_take_is_one_line(call, home, words, message):
    answer = call(f"run={find_run(home, 'qkv')}", *words, command=cli.convert)
    assert answer.code == 2, answer.out
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_a_parent_that_is_no_run_is_one_line(call, home):
    for parent in (home, home / "my.capsule"):
        answer = call(f"run={parent}", "attn=kv", command=cli.convert)
        assert answer.code == 2
        assert "not a run folder; give one that holds config.yaml and run.json" in answer.err


def test_conveniences_are_options():
    words = ["run=a", "attn=kv", "epochs=2", "lr=1e-4", "trainer=gpu"]
    assert to_options(words) == [
        "convert.parent=a", "attn=kv", "convert.epochs=2", "convert.lr=1e-4", "trainer=gpu",
    ]  # fmt: skip


def test_the_defaults_of_the_command_are_those_of_the_fields():
    given = yaml.safe_load((FOLDER / "convert.yaml").read_text())["convert"]
    for name, field in Conversion.model_fields.items():
        assert given[name] == ("???" if field.is_required() else field.default)
    ConvertOptions.model_validate(given)


def test_the_parent_is_part_of_the_identity_but_not_its_place(trained, tmp_path):
    parent = find_run(trained, "qkv")
    moved = tmp_path / "moved"
    shutil.copytree(parent, moved)
    raw = to_raw(compose("train", ["experiment=smoke", "attn=kv"]))

    def identity(**conversion):
        values = {**raw, "conversion": conversion} if conversion else raw
        return run_id(parse_config(values), "data", "split")

    same = identity(parent=str(parent))
    assert same == identity(parent=str(moved))
    assert same != identity()
    assert same != identity(parent=str(parent), surgery="average")
    (moved / "checkpoints/best.ckpt").write_bytes(b"other")
    assert same != identity(parent=str(moved))
    assert not affects_comparison("conversion.parent")
    assert affects_comparison("conversion.surgery")


def test_the_trainer_is_the_parents_unless_it_is_given(trained):
    plain = to_raw(compose("train", ["trainer=gpu", "trainer.save_minutes=3"]))["trainer"]
    changed = _changed_trainer(plain, ["trainer", "trainer.save_minutes"])
    assert changed["accelerator"] == "gpu"
    assert changed["save_minutes"] == 3
    assert "gradient_clip" not in changed
    assert _changed_trainer(plain, ["trainer.save_minutes"]) == {"save_minutes": 3}
