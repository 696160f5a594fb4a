"""A search ends with exactly its trials, whoever is killed; bad spaces are refused at once."""

import importlib.util
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from attnseg import cli
from attnseg.config.training import parse_config
from attnseg.errors import ConfigError, ResourceError
from attnseg.runs.run_folder import RunFolder
from attnseg.training.callbacks.history import EndedEarly
from attnseg.training.train import train
from tests.contracts.groups import compose, names
from tests.limits import HANG

SPACE = "search.space={optimizer.lr:{low:1e-4,high:1e-2,log:true}}"
SMOKE = ("experiment=smoke", "trainer.limit_batches=2", "logger=none")


def pretend(config, on_folder, on_epoch):
    """Train in no time: the better, the nearer the learning rate is to 1e-3; goes on if cut off."""
    lr = config.optimizer.lr
    folder = Path(config.paths.outputs, "phantom", "model", config.choices["attn"], f"{lr:.9f}")
    folder.mkdir(parents=True, exist_ok=True)
    on_folder(folder)
    with (folder / "began").open("a") as file:
        file.write("x")
    rows = RunFolder(folder).history_rows()
    for epoch in range(len(rows) + 1, config.trainer.max_epochs + 1):
        time.sleep(0.02)
        rows.append({"epoch": epoch, "val/dice": epoch * min(lr, 1e-6 / lr), "val/loss": lr})
        pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)
        on_epoch(rows)
    return folder


@pytest.fixture
def search(call, monkeypatch, tmp_path):
    """Call the search with pretended training; return answer and table of trials."""

    def run(*options, train=pretend):
        monkeypatch.setattr("attnseg.search.trial.train", train)
        answer = call(*SMOKE, "search.name=one", *options, command=cli.search)
        path = tmp_path / "outputs/searches/one/trials.csv"
        return answer, pd.read_csv(path) if path.exists() else None

    return run


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("null", "search.space: not set; choose one as search=NAME or give"),
        ("{optimizer.lrr:{low:1,high:2}}", "optimizer.lrr: no such key; did you mean lr?"),
        (
            "{optimizer.lr:{low:1,hihg:2}}",
            "search.space.optimizer.lr.hihg: no such option; did you",
        ),
        ("{optimizer.lr:{low:1}}", "search.space.optimizer.lr.high: missing"),
        ("{optimizer.lr:{low:2,high:1}}", "search.space.optimizer.lr: low 2 is not below high 1"),
        ("{optimizer.lr:{low:0,high:1,log:true}}", "low 0 has no logarithm"),
        ("{optimizer.lr:{low:-1,high:1}}", "optimizer.lr: -1 is not allowed"),
        ("{optimizer.lr:{choices:[]}}", "search.space.optimizer.lr.choices: [] is not allowed"),
        ("{optimizer.lr:0.1}", "search.space.optimizer.lr: 0.1 is no range"),
        ("{attn:{choices:[qkv,kvv]}}", "attn: no 'kvv'; did you mean kv?"),
        ("{loss.gamma:{low:1,high:2}}", "loss.gamma: no such key"),
        ("{trainer.max_epochs:{low:1,high:3}}", "trainer.max_epochs: set, and in search.space"),
    ],
)
def test_a_bad_space_is_refused_in_one_line(search, tmp_path, space, said):
    answer, table = search(f"search.space={space}", "trainer.max_epochs=2")
    assert (answer.code, answer.err.count("\n")) == (2, 1), answer.err
    assert said in answer.err
    assert table is None
    assert not list(tmp_path.glob("outputs/searches/*"))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("trainer.max_epochs=0", "trainer.max_epochs: 0; a search needs at least one epoch"),
        ("dataset.split.watch_test=true", "dataset.split.watch_test: a search must not see"),
        ("search.pruner=mediann", "search.pruner: 'mediann' is not allowed"),
        ("search.trails=3", "search.trails: no such key; did you mean trials?"),
        ("search=optimiser", "search: no 'optimiser'; did you mean optimizer?"),
    ],
)
def test_a_search_that_cannot_work_is_refused(search, option, said):
    answer, _ = search(SPACE, option)
    assert (answer.code, answer.err.count("\n")) == (2, 1), answer.err
    assert said in answer.err


def test_nothing_to_report_and_nothing_to_search_with(search, monkeypatch):
    answer, _ = search(SPACE, "search.report=true")
    assert answer.code == 3
    assert "outputs/searches/one: no search here" in answer.err
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else find(name, *a)
    )
    answer, _ = search(SPACE)
    assert answer.code == 2
    assert "search: optuna is not installed; pip install 'attnseg[search]'" in answer.err


def test_the_best_is_found_reported_and_ready_to_run(search, call, tmp_path):
    space = "search.space={optimizer.lr:{low:1e-4,high:1e-2,log:true},attn:{choices:[qkv,kv]}}"
    answer, table = search(space, "search.trials=14", "search.pruner=none", "model.depth=2")
    assert answer.code == 0, answer.err
    assert list(table["status"]) == ["done"] * 14
    best = table.loc[table["val/dice"].idxmax()]
    assert 0.8e-3 < best["optimizer.lr"] < 1.25e-3
    assert "Importance: " in answer.out
    assert "Importance: given from" not in answer.out
    folder = tmp_path / "outputs/searches/one"
    assert (folder / "search.png").stat().st_size > 10_000
    found = yaml.safe_load((folder / "experiment/best.yaml").read_text())
    assert found["optimizer"]["lr"] == best["optimizer.lr"]
    command = next(line for line in answer.out.splitlines() if line.startswith("To train the best"))
    words = shlex.split(command.split("train.py ")[1])
    assert "model.depth=2" in words
    config = yaml.safe_load(call(*words, "--cfg", "job").out)
    assert config["optimizer"]["lr"] == best["optimizer.lr"]
    assert config["attn"]["sharing"] == {"qkv": "none", "kv": "qk"}[best["attn"]]
    assert config["dataset"]["image_size"] == [64, 64]
    assert config["trainer"]["open_test"] is True
    # Again: nothing is done twice, and the report is the same.
    again, same = search(space, "search.trials=14", "search.pruner=none", "model.depth=2")
    assert again.code == 0
    assert "== Trial" not in again.out
    pd.testing.assert_frame_equal(table, same)
    # One name is one search.
    other, _ = search(SPACE, "search.trials=14")
    assert other.code == 2
    assert "search.name: outputs/searches/one holds a search of another" in other.err


@pytest.mark.parametrize("name", names("search"))
def test_a_space_that_comes_along_can_be_searched(search, name):
    answer, table = search(f"search={name}", "search.trials=1", "search.study=null")
    assert answer.code == 0, answer.err
    assert "optimizer.lr" in table


def test_variants_are_tuned_alike_and_their_winners_compared(call, monkeypatch, tmp_path):
    """KV is best at the same rate as QKV; each has its own trials, and its winner every seed."""
    compared = []

    def compare(runs, **options):
        options["outputs"].mkdir(parents=True)
        compared.append((runs, options))

    def win(config, **_):
        assert config.trainer.open_test
        assert config.compare.margin == 0.02
        name = f"{config.choices['attn']}-{config.seed}-{config.optimizer.lr:.9f}"
        (tmp_path / "winners").mkdir(exist_ok=True)
        (tmp_path / "winners" / name).touch()
        return Path("runs", name)

    monkeypatch.setattr("attnseg.search.trial.train", pretend)
    monkeypatch.setattr("attnseg.search.tuned_study.train", win)
    monkeypatch.setattr("attnseg.study.compare.compare_runs", compare)
    study = "search.study={variants:{attn:[qkv,kv]},seeds:[0,4],compare:{baseline:qkv,margin:0.02}}"
    options = (SPACE, study, "search.trials=3", "trainer.max_epochs=2", "search.name=one")
    answer = call(*SMOKE, *options, command=cli.search)
    assert answer.code == 0, answer.err
    best = {}
    for attn in ("qkv", "kv"):
        trials = pd.read_csv(tmp_path / f"outputs/searches/one-{attn}/trials.csv")
        assert len(trials) == 3
        assert trials["run"].str.contains(f"/{attn}/").all()
        best[attn] = trials.loc[trials["val/dice"].idxmax(), "optimizer.lr"]
    # The same sampler and seed: the first draws are the same for every variant.
    assert best["qkv"] == best["kv"]
    ((runs, said),) = compared
    assert runs == [f"runs/{a}-{s}-{best[a]:.9f}" for a in ("qkv", "kv") for s in (0, 4)]
    assert (said["baseline"], said["margin"]["margin"]) == ("qkv", 0.02)
    assert said["notes"][0].startswith("Each variant was tuned by 3 trials of the same space")
    costs = pd.read_csv(tmp_path / "outputs/comparisons/one/tuning.csv").set_index("variant")
    assert costs[["trials", "epochs"]].to_numpy().tolist() == [[3, 6], [3, 6]]
    assert "Tuning" in answer.out
    again = call(*SMOKE, *options[:-1], "search.name=two", "attn=kv", command=cli.search)
    assert again.code == 2
    assert "attn: set, and in search.study.variants" in again.err
    other = call(*SMOKE, *options[:-1], "compare={baseline:kv}", command=cli.search)
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "compare: the study declares its own; use search.study.compare instead" in other.err


def test_trials_behind_the_others_are_pruned(search):
    answer, table = search(
        SPACE, "search.trials=12", "search.startup=3", "search.warmup=1", "trainer.max_epochs=5"
    )
    assert answer.code == 0, answer.err
    pruned = table[table["status"] == "pruned"]
    assert len(pruned)
    assert set(table["status"]) == {"done", "pruned"}
    assert set(pruned["epochs"]) == {2}  # as soon as the warm-up allows it
    assert set(table["status"][:3]) == {"done"}
    assert table.loc[table["val/dice"].idxmax(), "status"] == "done"


def test_a_curve_that_begins_at_zero_is_told_as_it_is(search, tmp_path):
    def at_first_nothing(config, on_folder, on_epoch):
        folder = tmp_path / "outputs/phantom/model/qkv" / str(config.optimizer.lr)
        folder.mkdir(parents=True)
        rows = [{"epoch": epoch, "val/dice": value} for epoch, value in ((1, 0.0), (2, 0.5))]
        pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)
        on_epoch(rows[:1])
        return folder

    search(SPACE, "search.trials=1", train=at_first_nothing)
    journal = (tmp_path / "outputs/searches/one/journal.log").read_text()
    told = [line for line in map(json.loads, journal.splitlines()) if "intermediate_value" in line]
    assert [(one["step"], one["intermediate_value"]) for one in told] == [(1, 0.0), (2, 0.5)]


def test_halving_prunes_too(search):
    _, table = search(
        SPACE, "search.trials=10", "search.pruner=halving", "search.startup=0", "search.warmup=0",
        "trainer.max_epochs=6",
    )  # fmt: skip
    assert {"done", "pruned"} == set(table["status"])


def test_the_loss_is_minimised(search):
    _, table = search(SPACE, "search.trials=3", "trainer.monitor=val/loss")
    text = Path("outputs/searches/one/experiment/best.yaml").read_text()
    assert yaml.safe_load(text)["optimizer"]["lr"] == table["optimizer.lr"].min()


def worker(options):
    """Run the search as a process of its own would, output aside."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["search.py", *options]
    cli.search()


def test_three_processes_do_exactly_the_trials(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("attnseg.search.trial.train", pretend)
    options = (*SMOKE, SPACE, "search.name=one", "search.trials=9", "search.pruner=none")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=worker, args=(options,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG)
    assert [process.exitcode for process in processes] == [0] * 3
    table = pd.read_csv("outputs/searches/one/trials.csv")
    assert list(table["trial"]) == list(range(1, 10))
    assert set(table["status"]) == {"done"}
    assert table["optimizer.lr"].nunique() == 9
    assert [path.read_text() for path in tmp_path.glob("outputs/**/began")] == ["x"] * 9


def test_a_killed_trial_goes_on_and_one_that_never_gets_on_is_given_up(search, tmp_path):
    def killed_once(config, on_folder, on_epoch):
        def die(rows):
            on_epoch(rows)
            if len(rows) == 1 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        return pretend(config, on_folder, die)

    answer, table = search(SPACE, "search.trials=2", train=killed_once)
    assert answer.code == 0, answer.err
    assert "killed by signal 9; the search continues" in answer.out
    assert list(table["status"]) == ["done", "done"]
    assert sorted(p.read_text() for p in tmp_path.glob("outputs/**/began")) == ["x", "xx"]

    def killed_always(config, on_folder, on_epoch):
        os.kill(os.getpid(), signal.SIGKILL)

    answer, table = search(SPACE, "search.trials=3", train=killed_always)
    assert answer.code == 0
    assert answer.out.count("killed by signal 9") == 3
    assert list(table["status"]) == ["done", "done", "failed"]
    assert table["reason"][2] == "cut off 3 times in the same epoch"


def test_what_fails_for_its_parameters_is_noted_and_what_ails_the_machine_stops_the_search(search):
    def high_ones_fail(config, on_folder, on_epoch):
        if config.optimizer.lr > 2e-3:
            raise ConfigError("training: the loss became nan; lower optimizer.lr")
        return pretend(config, on_folder, on_epoch)

    answer, table = search(SPACE, "search.trials=6", train=high_ones_fail)
    assert answer.code == 0, answer.err
    failed = table["optimizer.lr"] > 2e-3
    assert 0 < failed.sum() < 6
    assert list(table["status"] == "failed") == list(failed)
    assert set(table["reason"][failed]) == {"training: the loss became nan; lower optimizer.lr"}

    def disk_full(config, on_folder, on_epoch):
        raise ResourceError("outputs: no space left on device; free some")

    answer, table = search(SPACE, "search.trials=8", train=disk_full)
    assert answer.code == 5
    assert list(table["status"][6:]) == ["open"]
    lr = table["optimizer.lr"][6]
    answer, table = search(SPACE, "search.trials=8")
    assert answer.code == 0
    assert table["optimizer.lr"][6] == lr
    assert "open" not in set(table["status"])


def test_a_search_in_which_everything_fails_ends(search):
    def fail(config, on_folder, on_epoch):
        raise ConfigError("model.size: no such size; choose another")

    answer, table = search(SPACE, "search.trials=20", train=fail)
    assert answer.code == 2
    assert "Warning" not in answer.err  # matplotlib's, of an empty plot
    assert list(table["status"]) == ["failed"] * 3


def test_a_run_that_is_watched_can_be_ended_and_goes_on_later(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = compose(*SMOKE, "trainer.max_epochs=3", "trainer.open_test=false")
    plain["choices"] |= {"dataset": "phantom"}
    config, seen = parse_config(plain), []

    def watch(rows):
        seen.append([row["epoch"] for row in rows])
        if len(rows) == 2:
            raise EndedEarly("pruned after 2 of 3 epochs")

    with pytest.raises(EndedEarly):
        train(config, on_epoch=watch)
    (path,) = tmp_path.glob("outputs/*/*/*/*/run.json")
    facts = json.loads(path.read_text())
    assert (facts["status"], facts["reason"]) == ("stopped", "pruned after 2 of 3 epochs")
    assert seen == [[1], [1, 2]]
    train(config)
    facts = json.loads(path.read_text())
    assert [one["status"] for one in facts["attempts"]] == ["stopped", "done"]
    assert len(RunFolder(path.parent).history_rows()) == 3


@pytest.mark.slow
def test_a_search_killed_in_the_middle_goes_on_to_the_same_trials(search, tmp_path):
    """The real thing: two trials, of which the first is killed with its worker."""
    options = (*SMOKE, SPACE, "search.name=one", "search.trials=2", "trainer.max_epochs=3")
    command = [Path(sys.executable).with_name("attnseg"), "search", *options]
    (tmp_path / "real").mkdir()
    with subprocess.Popen(
        command, cwd=tmp_path / "real", stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("Epoch 1/3: train"):
                process.kill()
        # The pipe's end: its child, told by the system, has stopped as well.
    done = subprocess.run(command, cwd=tmp_path / "real", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Going on from" in done.stdout
    table = pd.read_csv(tmp_path / "real/outputs/searches/one/trials.csv")
    assert list(table["status"]) == ["done"] * 2
    assert list(table["epochs"]) == [3] * 2
    runs = [json.loads(p.read_text()) for p in tmp_path.glob("real/outputs/*/*/*/*/run.json")]
    assert all(run["status"] == "done" and not run["test_set"]["openings"] for run in runs)
    assert sorted(len(run["attempts"]) for run in runs) == [1, 2]
    # What is drawn follows from the seed and the trial's number alone.
    _, pretended = search(SPACE, "search.trials=2", "trainer.max_epochs=3")
    assert list(pretended["optimizer.lr"]) == list(table["optimizer.lr"])
