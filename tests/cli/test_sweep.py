"""Sweeps: a job that dies takes no other with it; the same command does only what is missing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attnseg.processes.lock import Lock
from attnseg.runs.sweep_jobs import Ledger
from tests.limits import HANG
from tests.processes.running import is_running

ROOT = Path(__file__).parents[2]
SMOKE = ["-m", "experiment=smoke", "trainer.limit_batches=2"]


def start(folder, *options, **keywords):
    """Start a sweep in a session of its own, its output in a file."""
    folder.mkdir(exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, ROOT / "train.py", *SMOKE, *options],
            cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **keywords,
        )  # fmt: skip


def finish(folder, *options):
    """Run a sweep to its end; return exit code and output."""
    with start(folder, *options) as process:
        code = process.wait(timeout=1200)
    return code, (folder / "output.txt").read_text()


def ledger(folder):
    (path,) = folder.glob("outputs/.sweep/*/")
    return Ledger(path)


def runs(folder):
    return sorted(path.parent for path in folder.glob("outputs/*/*/*/*/run.json"))


def weights(folder):
    """SHA-256 of the final and the best weights of every run."""
    found = {}
    for run in runs(folder):
        for name in ("last", "best"):
            state = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
            digest = hashlib.sha256()
            for key in sorted(state):
                digest.update(state[key].numpy().tobytes())
            found[str(run.relative_to(folder)), name] = digest.hexdigest()
    return found


def attempts(folder):
    return [json.loads((run / "run.json").read_text())["attempts"] for run in runs(folder)]


def descendants(pid):
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(name) for name in found] + [d for name in found for d in descendants(int(name))]


def wait_for(what):
    until = time.monotonic() + HANG
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def kill_job(folder, process):
    """Kill the child that does the job, once it trains."""
    wait_for(lambda: list(folder.glob("outputs/*/*/*/*/checkpoints/last.ckpt")))
    (child, *_) = descendants(process.pid)
    os.kill(child, signal.SIGKILL)


def test_a_killed_job_takes_no_other_with_it_and_is_finished_by_the_same_command(tmp_path):
    options = ["attn=qkv,kv", "trainer.max_epochs=8"]
    with start(tmp_path / "cut", *options) as process:
        kill_job(tmp_path / "cut", process)
        assert process.wait(timeout=HANG) == 5
    text = (tmp_path / "cut/output.txt").read_text()
    assert "error: job 0: killed by SIGKILL; run the command again to go on" in text
    assert "1 killed, 1 done" in text
    assert "1 of 2 jobs are missing" in text
    assert [job.status for job in ledger(tmp_path / "cut").jobs()] == ["killed", "done"]
    done = runs(tmp_path / "cut")[0] / "metrics.json"  # of attn=kv
    before = done.stat().st_mtime_ns
    code, text = finish(tmp_path / "cut", *options)
    assert code == 0
    assert "Going on from" in text
    assert "2 done" in text
    assert done.stat().st_mtime_ns == before
    ends = [[attempt["status"] for attempt in run] for run in attempts(tmp_path / "cut")]
    assert ends == [["done"], ["cut off", "done"]]
    code, _ = finish(tmp_path / "whole", *options)
    assert code == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_ctrl_c_ends_the_whole_sweep(tmp_path):
    with start(tmp_path, "attn=qkv,kv", "trainer.max_epochs=50") as process:
        wait_for(lambda: list(tmp_path.glob("outputs/*/*/*/*/checkpoints/last.ckpt")))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    text = (tmp_path / "output.txt").read_text()
    assert "error: stopped by SIGINT; the same command goes on" in text
    assert "1 stopped, 1 pending" in text
    assert "Traceback" not in text


def test_no_orphan_is_left_when_the_sweep_itself_is_killed(tmp_path):
    with start(tmp_path, "attn=qkv,kv", "trainer.max_epochs=50") as process:
        wait_for(lambda: list(tmp_path.glob("outputs/*/*/*/*/checkpoints/last.ckpt")))
        (child, *_) = descendants(process.pid)
        process.kill()
    wait_for(lambda: not is_running(child))
    (run,) = runs(tmp_path)
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"


def test_a_job_that_fails_is_named_and_the_rest_is_done(call):
    answer = call(*SMOKE, "model=setr", "model.patch_size=16,7", "trainer.max_epochs=1")
    assert answer.code == 2
    assert "1 done, 1 failed" in answer.out
    assert "1 of 2 jobs are missing" in answer.out
    first = answer.err.splitlines()[0]
    assert first.startswith("error: model")
    again = call(*SMOKE, "model=setr", "model.patch_size=16,7", "trainer.max_epochs=1")
    assert "Done before" in again.out
    assert again.code == 2


def test_status_knows_the_jobs_that_wait(call, tmp_path):
    Ledger(tmp_path / "outputs/.sweep/x").open([["attn=qkv"], ["attn=kv"]])
    answer = call("status", command=__import__("attnseg.cli").cli.main)
    assert answer.code == 0
    assert "attn=kv" in answer.out
    assert "2 pending" in answer.out


def test_jobs_that_cannot_be_composed_are_refused_before_any_runs(call, tmp_path):
    answer = call("-m", "experiment=smoke", "model=setr,setrr")
    assert answer.code == 2
    assert "setrr" in answer.err
    assert not list(tmp_path.glob("outputs/.sweep/*/job-*"))


def test_a_lock_is_not_lost_to_whoever_waited_for_its_file(tmp_path):
    """A file that its holder has removed in the meantime is no lock."""
    first = Lock(tmp_path / "lock")
    assert first.take() is None
    stale = (tmp_path / "lock").open("a+")
    first.release()
    second = Lock(tmp_path / "lock")
    assert second.take() is None
    assert os.fstat(stale.fileno()).st_ino != (tmp_path / "lock").stat().st_ino
    second.release()
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(("age", "taken"), [(5, False), (1000, True)])
def test_another_machine_that_shows_life_keeps_its_lock(tmp_path, age, taken):
    """Where a folder is shared and its locks are not."""
    lock = Lock(tmp_path / "lock")
    lock.path.write_text("process 1 on elsewhere\n")
    moment = time.time() - age
    os.utime(lock.path, (moment, moment))
    holder = lock.take()
    assert (holder is None) == taken
    if taken:
        lock.release()
    else:
        assert holder == "process 1 on elsewhere"


TWELVE = ["attn=qkv,kv,kv_pos,efficient", "seed=0,1,2", "trainer.max_epochs=6"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _ = finish(folder, *TWELVE)
    assert code == 0
    return weights(folder)


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path, undisturbed):
    """The sweep, its job, or all processes at once; in the end all is as if nothing had been."""
    rng = np.random.default_rng(int(os.environ.get("ATTNSEG_SEED", "0")))
    for kill in range(10):
        with start(tmp_path, *TWELVE) as process:
            time.sleep(rng.uniform(3, 25))
            children = descendants(process.pid)
            victims = [[process.pid], children[:1], [process.pid, *children]][kill % 3]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            if process.pid not in victims:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=HANG)
    code, text = finish(tmp_path, *TWELVE)
    assert code == 0
    assert "12 done" in text
    assert weights(tmp_path) == undisturbed
    ends = [[attempt["status"] for attempt in run].count("done") for run in attempts(tmp_path)]
    assert ends == [1] * 12
    print("attempts by run:", [len(run) for run in attempts(tmp_path)])


@pytest.mark.slow
def test_two_launchers_at_once_do_every_run_once(tmp_path, undisturbed):
    with start(tmp_path, *TWELVE) as one, start(tmp_path, *TWELVE) as other:
        codes = one.wait(timeout=1200), other.wait(timeout=1200)
    assert min(codes) == 0  # whoever ends last has seen all of them done
    assert weights(tmp_path) == undisturbed
    assert [[a["status"] for a in run] for run in attempts(tmp_path)] == [["done"]] * 12
