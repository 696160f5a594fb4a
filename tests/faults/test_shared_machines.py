"""File systems without locks, syncs, modes or renames, and locks that other machines hold.

The system calls are refused by a library that is put before the C library (`refusals.c`).
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnseg.processes import lock
from attnseg.processes.lock import Lock, is_held
from tests.data.uw_tree import Tree
from tests.limits import HANG

FORK = multiprocessing.get_context("fork")
# Prepares a dataset, takes a lock twice, and writes into a journal, as commands do.
WORK = """
import json, subprocess, sys
from pathlib import Path
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.closed_test import record_opening
from attnseg.data.store import prepare_cases
from attnseg.errors import AttnsegError
from attnseg.files import write_text
from attnseg.prediction.manifest import Manifest
from attnseg.processes import lock

folder = Path(sys.argv[1])
lock.SETTLE = 0.1
ask = "import sys; from pathlib import Path; from attnseg.processes.lock import *; "
ask += "print(is_held(Path(sys.argv[1])), Lock(Path(sys.argv[1])).take())"
done = {}
reader = UWMadison(folder / "root")
try:
    done["cases"] = len(prepare_cases(reader, reader.cases(), folder / "store"))
    write_text(folder / "text", "whole")
    record_opening("digest", [folder / "ledger"], "run", "test")
    with Manifest(folder / "out", "settings") as manifest:
        manifest.close({"items": []})
    mine = lock.Lock(folder / "lock")
    done["taken"] = mine.take() is None
    other = subprocess.run(
        [sys.executable, "-c", ask, folder / "lock"], capture_output=True, text=True
    )
    done["other"] = other.stdout + other.stderr[-500:]
    mine.release()
    done["left"] = sorted(path.name for path in folder.iterdir() if path.name[0] == ".")
except (AttnsegError, OSError) as error:
    done["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "refusals.so"
    source = Path(__file__).with_name("refusals.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("refused", ["lock", "folders", "sync", "chmod", "lock sync chmod"])
def test_a_file_system_that_lacks_something_is_used(shim, tmp_path, refused):
    done = work_without(refused, shim, tmp_path)
    assert "error" not in done, done
    assert done["cases"] == 2
    assert done["taken"]
    assert done["other"].startswith("True process "), done["other"]
    assert done["left"] == []


def test_a_file_system_that_renames_nothing_is_refused_in_a_line(shim, tmp_path):
    done = work_without("rename", shim, tmp_path)
    assert done["error"].startswith(
        f"ResourceError: {tmp_path}/store/case-case1_day0: Operation not"
    )
    assert done["error"].count("\n") == 0
    assert list((tmp_path / "store").iterdir()) == []


def work_without(refused, shim, folder):
    tree = Tree(folder / "root", ("case1_day0", "case2_day0"))
    tree.write()
    environment = {**os.environ, "LD_PRELOAD": str(shim), "REFUSED": refused}
    answer = subprocess.run(
        [sys.executable, "-c", WORK, folder], env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.fixture
def no_locks(monkeypatch):
    """A machine whose file system has no locks, in this process and its forks."""

    def lockf(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", lockf)


def test_of_several_that_come_at_once_one_holds_a_lock_by_heartbeat(tmp_path, no_locks):
    start, end, holders = FORK.Barrier(4), FORK.Barrier(4), FORK.Value("i", 0)

    def take():
        start.wait()
        if Lock(tmp_path / "lock").take() is None:
            with holders.get_lock():
                holders.value += 1
        end.wait(HANG)  # The holder stays alive until all have tried.

    children = [FORK.Process(target=take) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(HANG)
    assert [child.exitcode for child in children] == [0] * 4
    assert holders.value == 1


@pytest.mark.parametrize(
    ("holder", "age", "held"),
    [
        ("process 1 on elsewhere", 10, True),
        ("process 1 on elsewhere", 200, False),
        ("process 1 on here", 10, True),
        ("process 1 on here", 200, False),
        ("process 4194305 on here", 10, False),  # beyond the largest id
        ("something else on here", 10, False),
        ("", 10, False),
    ],
)
def test_who_is_alive_without_locks(tmp_path, no_locks, monkeypatch, holder, age, held):
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(lock, "SETTLE", 0.0)  # Nobody else tries to take it.
    path = tmp_path / "lock"
    path.write_text(holder + "\n")
    moment = time.time() - age
    os.utime(path, (moment, moment))
    assert is_held(path) == held
    mine = Lock(path)
    assert (mine.take() is None) != held
    mine.release()
    assert path.exists() == held


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_another_person_sees_who_trains(commons, mode):
    """Even if the lock file may be read only, or not at all."""
    commons.chmod(0o755)
    path = commons / "lock"
    holder = Lock(path)
    assert holder.take() is None
    path.chmod(mode)
    assert seen_by_another(path)
    if mode == 0o644:  # The lock itself tells.
        os.utime(path, (0, 0))
        assert seen_by_another(path)
    holder.release()
    path.write_text("process 1 on elsewhere\n")
    path.chmod(mode)
    os.utime(path, (0, 0))
    assert not seen_by_another(path)


def seen_by_another(path):
    def look():
        os.setgid(1002)
        os.setuid(1002)
        os._exit(0 if is_held(path) else 1)

    child = FORK.Process(target=look)
    child.start()
    child.join(HANG)
    assert child.exitcode in (0, 1)
    return child.exitcode == 0
