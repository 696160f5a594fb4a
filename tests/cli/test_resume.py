"""The same command finishes what was cut off, to the bit, and repeats nothing that is done."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attnseg.files import file_digest, is_whole
from attnseg.processes.lock import Lock
from tests.faults.runs import assert_same_end, attempt, run_of, send_at

ROOT = Path(__file__).parents[2]
PLAIN = ("trainer.max_epochs=4",)
EVERYTHING = (
    "trainer.max_epochs=4", "trainer.ema_decay=0.9", "trainer.accumulate=3",
    "trainer.num_workers=2", "optimizer=sgd", "dataset.foreground=0.5",
    "trainer.early_stopping=4", "trainer.score_every=2",
)  # fmt: skip


def command(*options):
    return [sys.executable, ROOT / "train.py", "experiment=smoke", "attn=kv", *options]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    assert attempt(folder, *PLAIN) == 0
    return run_of(folder)


def test_killed_once_and_resumed_to_the_same_end(tmp_path):
    options = ("trainer.max_epochs=2",)
    first, other = tmp_path / "first", tmp_path / "other"
    assert attempt(first, *options) == 0
    kill = send_at("step", 18, signal.SIGKILL)
    assert attempt(other, *options, fault=kill) == -signal.SIGKILL
    assert attempt(other, *options) == 0
    assert_same_end(run_of(first), run_of(other))


def test_killed_and_repeated_until_done(tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    assert attempt(first, *EVERYTHING) == 0
    for count in (18, 30):
        kill = send_at("step", count, signal.SIGKILL)
        assert attempt(other, *EVERYTHING, fault=kill) == -signal.SIGKILL
    assert attempt(other, *EVERYTHING) == 0
    run = run_of(other)
    assert_same_end(run_of(first), run)
    facts = json.loads((run / "run.json").read_text())
    assert [one["status"] for one in facts["attempts"]] == ["cut off"] * 2 + ["done"]
    assert not [path for path in run.rglob(".*")]
    assert not (run / "lock").exists()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert attempt(other, *EVERYTHING) == 0
    assert "Done before, not run again" in (other / "output").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_damaged_checkpoint_is_noticed_and_training_starts_over(call, tmp_path):
    options = ("experiment=smoke", "trainer.max_epochs=2")
    assert call(*options).code == 0
    run = run_of(tmp_path)
    reference = tmp_path / "reference"
    shutil.copytree(run, reference)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    last = run / "checkpoints/last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    assert not is_whole(last)
    answer = call(*options)
    assert answer.code == 0
    assert "last.ckpt: damaged, unlike its SHA-256; training starts over" in answer.out
    assert_same_end(reference, run)


def test_a_run_that_was_trained_but_not_scored_is_only_scored(call, tmp_path, monkeypatch):
    monkeypatch.setattr("attnseg.training.train.evaluate_run", lambda *a: 1 / 0)
    assert call("experiment=smoke").code == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    before = file_digest(run_of(tmp_path) / "checkpoints/last.ckpt")
    answer = call("experiment=smoke")
    assert answer.code == 0
    assert "Epoch" not in answer.out
    assert file_digest(run_of(tmp_path) / "checkpoints/last.ckpt") == before
    facts = json.loads((run_of(tmp_path) / "run.json").read_text())
    assert [attempt["status"] for attempt in facts["attempts"]] == ["failed", "done"]
    assert "ZeroDivisionError" in facts["attempts"][0]["reason"]


def test_a_run_that_keeps_failing_is_not_tried_for_ever(call, tmp_path, monkeypatch):
    monkeypatch.setattr("attnseg.training.train.evaluate_run", lambda *a: 1 / 0)
    for _ in range(2):
        assert call("experiment=smoke", "trainer.attempts=2").code == 1
    answer = call("experiment=smoke", "trainer.attempts=2")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "failed 2 times, at last with ZeroDivisionError" in answer.err
    assert call("experiment=smoke", "trainer.attempts=3").code == 1


def test_two_processes_never_train_the_same_run(tmp_path):
    options = ["trainer.max_epochs=3000"]  # more than it can finish: it runs until it is killed
    with subprocess.Popen(
        command(*options), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as first:
        for text in first.stdout:
            if text.startswith("Epoch 1/3000: train"):
                break
        second = subprocess.run(command(*options), cwd=tmp_path, capture_output=True, text=True)
        first.kill()
        first.communicate()
    assert second.returncode == 5
    assert second.stderr.count("\n") == 1
    assert f"process {first.pid} on " in second.stderr
    assert "is training this; wait for it or stop it" in second.stderr


def test_a_moved_folder_goes_on_and_keeps_its_best(plain, tmp_path):
    kill = send_at("step", 30, signal.SIGKILL)
    assert attempt(tmp_path / "one", *PLAIN, fault=kill) == -signal.SIGKILL
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert attempt(tmp_path / "two", *PLAIN) == 0
    run = run_of(tmp_path / "two")
    assert_same_end(plain, run)
    names = sorted(path.name for path in (run / "checkpoints").glob("*.ckpt"))
    assert names == ["best.ckpt", "last.ckpt"]


def test_a_lock_is_held_by_one_and_freed_by_death(tmp_path):
    lock = Lock(tmp_path / "lock")
    assert lock.take() is None
    code = "from attnseg.processes.lock import Lock; from pathlib import Path; "
    code += f"print(Lock(Path({str(lock.path)!r})).take())"
    ask = [sys.executable, "-c", code]
    assert "process" in subprocess.run(ask, capture_output=True, text=True).stdout
    lock.release()
    assert subprocess.run(ask, capture_output=True, text=True).stdout == "None\n"
    assert lock.take() is None  # the other process has died with it


def test_status_of_runs(call, tmp_path, monkeypatch):
    assert call("experiment=smoke").code == 0
    monkeypatch.setattr("attnseg.training.train.evaluate_run", lambda *a: 1 / 0)
    assert call("experiment=smoke", "seed=1").code == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    runs = sorted(path.parent for path in tmp_path.glob("outputs/*/*/*/*/run.json"))
    copy = runs[0].with_name("0123456789")
    shutil.copytree(runs[0], copy)
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    lock = Lock(copy / "lock")
    assert lock.take() is None
    code = "import sys; sys.argv = ['attnseg']; from attnseg.cli import status; status()"
    ask = [sys.executable, "-c", code]
    done = subprocess.run(ask, capture_output=True, text=True)
    lock.release()
    assert "1 done, 1 failed" in done.stdout or "1 failed, 1 done" in done.stdout
    assert "1 training" in done.stdout
    assert "ZeroDivisionError" in done.stdout
    assert "2 of 2" in done.stdout
    assert "1 cut off" in subprocess.run(ask, capture_output=True, text=True).stdout
