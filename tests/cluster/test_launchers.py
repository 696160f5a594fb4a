"""Sweeps through Hydra's launchers: the same results, and one job's end is nobody else's."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.limits import HANG

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("joblib", "submitit_local")


def start(folder: Path, launcher: str, epochs: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the launchers would differ in it
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", "-m", f"hydra/launcher={launcher}", "experiment=smoke",
         "attn=qkv,kv", "augment=none", "dataset.limit_cases=3",
         f"trainer.max_epochs={epochs}", f"paths.data={folder.parent / 'data'}"],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(sweep: subprocess.Popen[str]) -> tuple[str, str]:
    return sweep.communicate(timeout=HANG)


def jobs(folder: Path) -> list[dict[str, object]]:
    return [json.loads(p.read_text()) for p in sorted(folder.glob("outputs/.sweep/*/job-*.json"))]


def results(folder: Path) -> dict[str, bytes]:
    return {p.parent.parent.name: p.read_bytes() for p in folder.glob("outputs/*/*/*/*/cases.csv")}


@pytest.fixture(scope="module")
def one_after_the_other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("basic")
    sweep = start(folder, "basic", 1)
    _, err = finish(sweep)
    assert sweep.returncode == 0, err
    return results(folder)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_jobs_at_once_give_what_one_after_the_other_gives(
    one_after_the_other, tmp_path, launcher
):
    sweep = start(tmp_path, launcher, 1)
    out, err = finish(sweep)
    assert sweep.returncode == 0, err
    assert "2 done" in out
    assert set(one_after_the_other) == {"qkv", "kv"}
    assert results(tmp_path) == one_after_the_other


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_is_killed_takes_no_other_with_it(tmp_path, launcher):
    sweep = start(tmp_path, launcher, 2)
    holder = ""
    while sweep.poll() is None and not holder.endswith("\n"):  # the lock names who trains
        with contextlib.suppress(FileNotFoundError):  # released in between
            holder = "".join(lock.read_text() for lock in tmp_path.glob("outputs/*/*/kv/*/lock"))
        time.sleep(0.05)
    assert holder, finish(sweep)
    os.kill(int(holder.split()[1]), signal.SIGKILL)
    out, err = finish(sweep)
    assert sweep.returncode == 5, err
    assert "1 done, 1 killed" in out
    assert [job["status"] for job in jobs(tmp_path)] == ["done", "killed"]
    assert "Traceback" not in out + err
