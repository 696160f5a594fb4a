"""Trackers are told each epoch once, whatever happens to the process, and change no result."""

import builtins
import importlib.util
import json
import os
import socket

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnseg.config.build import locate
from attnseg.config.training import parse_config
from attnseg.errors import ConfigError, ResourceError
from attnseg.runs.run_folder import RunFolder
from attnseg.training.loggers.run_loggers import RunLoggers, final_scores
from tests.contracts.groups import compose

ALL = "logger=[tensorboard,wandb,mlflow]"
METRICS = {
    "profile": {"name": "strict"},
    "val": {
        "cases": 2,
        "mean": {"dice": 0.5, "hd95_mm": None, "missed": 1, "interval": {"dice": [0.1, 0.9]}},
        "classes": {"liver": {"dice": 0.25, "missed": 1}},
    },
}


def config(*overrides):
    return parse_config(compose("experiment=smoke", *overrides))


def begin(folder, *overrides):
    loggers = RunLoggers(config(*overrides))
    loggers.open(RunFolder(folder))
    return loggers


def epochs(loggers, folder, first, last, written=None):
    """Log epochs as training does; `written` is the last that gets into history.csv."""
    rows = [
        {"epoch": e, "step": 3 * e, "val/dice": e / 10, "val/dice/liver": e / 20, "mark": "text"}
        for e in range(1, last + 1)
    ]
    for row in rows[first - 1 :]:
        loggers.log_epoch(row)
        kept = rows[: min(row["epoch"], written or last)]
        pd.DataFrame(kept).to_csv(folder / "history.csv", index=False)


def tensorboard_points(folder, tag="val/dice"):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(e.step, round(e.value, 4)) for e in events.Scalars(tag)]


def mlflow_points(folder, tag="val/dice"):
    from mlflow import MlflowClient

    client = MlflowClient((folder / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("attnseg").experiment_id])
    return run, [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)]


def wandb_records(folder):
    """What the one offline run holds: its id, and the rows of its history."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = [Record.FromString(data) for data in chunks(file.read_bytes())]
    (identity,) = {r.run.run_id for r in records if r.run.run_id}
    rows = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.history.item
    ]
    return identity, rows


def chunks(data, block=32768):
    """The records of a file in LevelDB's log format, whose own header is 7 bytes long."""
    whole, at = b"", 7
    while at + 7 <= len(data):
        if block - at % block < 7:  # no room for another header
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


@pytest.fixture
def no_network(monkeypatch):
    """Refuse all but the sockets by which W&B talks to its own service."""
    connect = socket.socket.connect

    def local(self, address):
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "localhost"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail(f"looked up {a}"))


@pytest.mark.full  # Importing W&B and MLflow takes 6 to 8 s.
def test_each_epoch_is_told_once_though_the_process_dies_twice(tmp_path, no_network):
    import wandb

    first = begin(tmp_path, ALL)
    epochs(first, tmp_path, 1, 3, written=2)  # dies after logging 3, before writing it
    wandb.teardown()
    before, _ = wandb_records(tmp_path)
    second = begin(tmp_path, ALL)
    epochs(second, tmp_path, 3, 4)  # dies after writing 4
    wandb.teardown()
    third = begin(tmp_path, ALL)
    epochs(third, tmp_path, 4, 5)  # no checkpoint of 4: it is trained again
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    third.finish("success")

    expected = [(e, e / 10) for e in range(1, 6)]
    assert tensorboard_points(tmp_path) == expected
    assert tensorboard_points(tmp_path, "val/strict/dice") == [(5, 0.5)]
    run, points = mlflow_points(tmp_path)
    assert points == expected
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val/strict.dice.liver"] == 0.25
    assert run.data.params["optimizer.lr"] == "0.0003"
    identity, rows = wandb_records(tmp_path)
    assert [(row["_step"], row["val/dice"]) for row in rows] == expected
    assert identity == before


def test_names_of_final_scores():
    assert final_scores(METRICS) == {"val/strict/dice": 0.5, "val/strict/dice/liver": 0.25}
    assert "watched_val/strict/dice" in final_scores({**METRICS, "watermark": "seen"})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_what_to_install(monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == name else find(n, *a)
    )
    with pytest.raises(ConfigError, match=rf"^logger={name}: {name} is not installed; pip install"):
        RunLoggers(config(f"logger=[{name}]"))


def test_nothing_of_an_extra_is_imported_by_default(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        assert name.partition(".")[0] not in ("wandb", "mlflow"), name
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    loggers = begin(tmp_path)
    epochs(loggers, tmp_path, 1, 1)
    loggers.finish("stopped")


def test_a_tracker_that_cannot_begin_stops_the_run_before_it_trains(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(ResourceError, match=r"^logger=tensorboard: cannot begin .*leave the"):
        begin(tmp_path)


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(tmp_path, caplog):
    loggers = begin(tmp_path)
    (opened,) = loggers.opened.values()
    opened.log_metrics = lambda *a: 1 / 0
    epochs(loggers, tmp_path, 1, 2)
    loggers.finish("stopped")
    assert [r.levelname for r in caplog.records if "left out" in r.message] == ["WARNING"]


def test_loggers_change_neither_run_nor_result(call, tmp_path):
    short = ("experiment=smoke", "trainer.max_epochs=1", "trainer.limit_batches=2")
    kept = {}
    for choice in ("none", "tensorboard,wandb,mlflow"):
        answer = call(*short, f"logger={choice}", f"paths.outputs={choice[:4]}")
        assert answer.code == 0, answer.err
        (run,) = tmp_path.glob(f"{choice[:4]}/*/*/*/*/run.json")
        kept[choice] = run.parent
    one, other = kept.values()
    assert one.name == other.name
    for name in ("metrics.json", "cases.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert not any((one / name).exists() for name in ("tensorboard", "wandb", "mlruns"))
    final = json.loads((other / "metrics.json").read_text())["test"]["mean"]["dice"]
    assert tensorboard_points(other, "test/strict/dice") == [(1, round(final, 4))]
    history = pd.read_csv(other / "history.csv")
    assert tensorboard_points(other, "train/loss") == [(1, round(history["train/loss"][0], 4))]


def test_an_unknown_logger_is_one_line(call):
    answer = call("logger=wandbb")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "logger: no 'wandbb'; did you mean wandb?" in answer.err
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize("module", ["engine.loggers", "training.loggers"])
def test_run_folders_of_earlier_versions_still_name_their_trackers(module):
    for node in config(ALL).logger.values():
        name = node.target.rpartition(".")[2]
        assert locate("logger", f"attnseg.{module}.{name}") is locate("logger", node.target)
