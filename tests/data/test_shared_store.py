"""The store on a shared machine: modes, other users, cases that vanish, killed processes."""

import encodings.utf_8_sig  # noqa: F401  other users may not read Python's own files
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from attnseg.data import parallel, store
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.errors import DataError, ResourceError
from attnseg.phantoms.phantom import make_once
from tests.data.uw_tree import Tree
from tests.limits import HANG
from tests.processes.running import is_running

FORK = multiprocessing.get_context("fork")


def make_tree(root, count=3):
    tree = Tree(root, tuple(f"case{n}_day0" for n in range(1, count + 1)))
    tree.write()
    return tree


def prepare(root, folder):
    reader = UWMadison(root)
    return store.prepare_cases(reader, reader.cases(), folder)


def run_as(user, action):
    """Run an action in a fork that belongs to a user; return its exit code: 0, 5 or 3 as ours."""

    def run():
        os.setgid(user)
        os.setuid(user)
        os.umask(0o022)
        try:
            action()
        except (DataError, ResourceError) as error:
            os.write(2, f"error: {error}\n".encode())
            os._exit(error.exit_code)
        os._exit(0)

    child = FORK.Process(target=run)
    child.start()
    child.join(HANG)
    return child.exitcode


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    make_tree(tmp_path / "root")
    before = os.umask(mask)
    try:
        cases = prepare(tmp_path / "root", tmp_path / "store")
        make_once(tmp_path / "made", {}, lambda folder: (folder / "file").touch())
    finally:
        os.umask(before)
    folders = [case.folder for case in cases] + [tmp_path / "made"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folders}
    assert modes == {0o777 & ~mask}
    files = [path for folder in folders for path in folder.iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


def test_what_one_user_prepares_another_reads_and_cannot_replace(commons, capfd):
    tree = make_tree(commons / "root")

    def read():
        for case in prepare(commons / "root", commons / "store"):
            assert case.image[0].any() or case.mask[0].any()

    assert run_as(1001, lambda: prepare(commons / "root", commons / "store")) == 0
    owners = {path.stat().st_uid for path in (commons / "store").iterdir()}
    assert owners == {1001}
    assert run_as(1002, read) == 0
    tree.rows["case2_day0_slice_0001", "stomach"] = "1 4"
    tree.write()
    assert run_as(1002, read) == ResourceError.exit_code
    line = capfd.readouterr().err
    assert line.startswith(f"error: {commons}/store/case-case")
    assert "_day0: Permission denied; check the path, permissions and space" in line
    assert line.count("\n") == 1
    assert run_as(1001, read) == 0


def test_two_users_prepare_one_dataset_at_once(commons):
    """In a folder that both may write, as with a common group."""
    make_tree(commons / "root", 8)
    (commons / "store").mkdir(mode=0o777)
    (commons / "store").chmod(0o777)

    def prepare_as(user):
        sys.exit(run_as(user, lambda: prepare(commons / "root", commons / "store")))

    children = [FORK.Process(target=prepare_as, args=(user,)) for user in (1001, 1002)]
    for child in children:
        child.start()
    for child in children:
        child.join(HANG)
    assert [child.exitcode for child in children] == [0, 0]
    assert len(list((commons / "store").iterdir())) == 8
    assert len(prepare(commons / "root", commons / "store")) == 8


def test_a_file_of_the_same_time_and_size_is_told_by_its_content(tmp_path, monkeypatch):
    reads = []
    original = UWMadison.read
    monkeypatch.setattr(
        UWMadison, "read", lambda self, ref: reads.append(ref.case) or original(self, ref)
    )
    tree = make_tree(tmp_path / "root")
    before = prepare(tree.root, tmp_path / "store")
    reads.clear()
    path = tree.path("case2_day0/scans/slice_0001_5_4_1.50_1.63.png")
    path.chmod(0o600)  # The inode has changed, the content has not.
    assert [case.digest for case in prepare(tree.root, tmp_path / "store")] == [
        case.digest for case in before
    ]
    assert reads == []
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    tree.files["case2_day0/scans/slice_0001_5_4_1.50_1.63.png"] += 1
    tree.write()
    replaced = path.read_bytes()
    assert len(replaced) == len(data) and replaced != data
    os.utime(path, ns=times)
    for other in tree.root.rglob("*.png"):
        if other != path:
            os.utime(other, ns=(0, 0))
    prepare(tree.root, tmp_path / "store")
    reads.clear()
    path.write_bytes(data)
    os.utime(path, ns=times)
    after = prepare(tree.root, tmp_path / "store")
    assert reads == ["case2_day0"]
    assert after[1].digest == before[1].digest


@pytest.mark.parametrize("how", ["deleted", "prepared anew"])
def test_cases_that_vanish_while_they_are_used(tmp_path, how):
    tree = make_tree(tmp_path / "root")
    case, *_ = prepare(tree.root, tmp_path / "store")
    assert case.image[0].any()
    kept = case.image
    if how == "deleted":
        shutil.rmtree(tmp_path / "store")
    else:
        tree.files = {name: pixels + 1 for name, pixels in tree.files.items()}
        tree.write()
        prepare(tree.root, tmp_path / "store")
    assert kept[0].any()  # What is in use stays.
    with pytest.raises(DataError, match="deleted or prepared anew while this command used it"):
        case.image  # noqa: B018


def test_the_same_case_prepared_anew_is_read_on(tmp_path):
    tree = make_tree(tmp_path / "root")
    case, *_ = prepare(tree.root, tmp_path / "store")
    before = case.image[:].copy()
    shutil.rmtree(tmp_path / "store")
    prepare(tree.root, tmp_path / "store")
    assert np.array_equal(case.image, before)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_preparation_that_is_killed_leaves_no_process_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "ITEMS_PER_PROCESS", 1)
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda pid: {0, 1})
    make_tree(tmp_path / "root", 6)
    original = UWMadison.read

    def read(self, ref):
        if ref.case == "case3_day0":
            time.sleep(2 * HANG)
        return original(self, ref)

    with monkeypatch.context() as patch:
        patch.setattr(UWMadison, "read", read)
        child = FORK.Process(target=prepare, args=(tmp_path / "root", tmp_path / "store"))
        child.start()
        while not (tmp_path / "store/case-case2_day0").exists():
            time.sleep(0.05)
        workers = children_of(child.pid)
        assert len(workers) == 2
        child.kill()
        child.join(HANG)
    deadline = time.monotonic() + HANG
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    abandoned = tmp_path / "store/.part-00000000"
    abandoned.mkdir()
    for part in (tmp_path / "store").glob(".part-*"):
        os.utime(part, (0, 0))
    assert len(prepare(tmp_path / "root", tmp_path / "store")) == 6
    assert len(list((tmp_path / "store").iterdir())) == 6


def test_a_process_that_is_killed_while_it_prepares(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "ITEMS_PER_PROCESS", 1)
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda pid: {0, 1})
    make_tree(tmp_path / "root", 4)
    monkeypatch.setattr(UWMadison, "read", lambda self, ref: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ResourceError, match=r"a process that worked on it was killed, perhaps"):
        prepare(tmp_path / "root", tmp_path / "store")


def test_several_processes_prepare_the_same_as_one(tmp_path, monkeypatch):
    make_tree(tmp_path / "root", 5)
    alone = prepare(tmp_path / "root", tmp_path / "alone")
    monkeypatch.setattr(parallel, "ITEMS_PER_PROCESS", 2)
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda pid: {0, 1})
    assert parallel.count_processes(5) == 2
    together = prepare(tmp_path / "root", tmp_path / "together")
    assert [case.digest for case in together] == [case.digest for case in alone]
    monkeypatch.setattr(parallel, "free_memory", lambda: parallel.MEMORY_PER_PROCESS)
    assert parallel.count_processes(1000) == 1
