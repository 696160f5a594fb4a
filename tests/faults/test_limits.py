"""Limits of a machine that are really there: open files, file sizes, full disks."""

import contextlib
import multiprocessing
import os
import resource
import subprocess
from pathlib import Path

import pytest

from attnseg.cli.failures import translate_error
from attnseg.data import parallel
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.slicing import SliceView
from attnseg.data.store import prepare_cases
from attnseg.errors import ResourceError
from tests.data.uw_tree import Tree
from tests.limits import HANG

FORK = multiprocessing.get_context("fork")


def count_open():
    return len(os.listdir("/proc/self/fd"))


def in_fork(action, *arguments):
    child = FORK.Process(target=action, args=arguments)
    child.start()
    child.join(HANG)
    return child.exitcode


@pytest.mark.parametrize("workers", [0, 2])
def test_more_cases_than_open_files_are_allowed(tmp_path, workers):
    Tree(tmp_path / "root", tuple(f"case{n}_day0" for n in range(1, 61))).write()

    def train():
        most = count_open() + 50  # The loader processes of both loaders need some.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        reader = UWMadison(tmp_path / "root")
        cases = prepare_cases(reader, reader.cases(), tmp_path / "store")
        loaders = SliceDataModule(cases[10:], cases[:10], SliceView((8, 8)), [], 4, workers, 0)
        train, val = loaders.train_dataloader(), loaders.val_dataloader()
        for epoch in range(2):
            train.sampler.set_epoch(epoch)
            slices = sum(len(batch["image"]) for loader in (train, val) for batch in loader)
            assert slices == 148 + 30
        assert all(case.image.any() and not case.mask.any() for case in cases)

    assert in_fork(train) == 0


def test_too_few_open_files_are_said():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            open("/dev/null")
        said = translate_error(error.value)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert isinstance(said, ResourceError)
    assert str(said).startswith("open files: ")
    assert "ulimit -n" in str(said)


def test_a_write_that_is_cut_short_names_the_case(tmp_path):
    """NumPy's own error has neither a number nor a file: a quota, or a limit of the file size."""
    tree = Tree(tmp_path / "root")
    tree.files = {name: pixels.repeat(40, 0).repeat(40, 1) for name, pixels in tree.files.items()}
    tree.files = {name.replace("_5_4_", "_200_160_"): px for name, px in tree.files.items()}
    reader = UWMadison(tree.write())
    (ref,) = reader.cases()

    def prepare():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
        try:
            prepare_cases(reader, [ref], tmp_path / "store")
        except ResourceError as error:
            (tmp_path / "error").write_text(str(error))

    assert in_fork(prepare) == 0
    line = (tmp_path / "error").read_text()
    assert line.startswith(f"{tmp_path}/store/case-{ref.case}: ")
    assert "written; check the path, permissions and space" in line
    assert list((tmp_path / "store").iterdir()) == []


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """Mount a file system in memory; skips the test where that is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("not allowed to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_full_while_data_is_prepared(call, tmp_path, phantom, monkeypatch):
    # With more, all cases would begin at once.
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 2)
    options = ("experiment=smoke", "trainer.max_epochs=1", "trainer.limit_batches=1")
    options += ("dataset=uw_madison", f"dataset.root={phantom}")
    with small_disk(tmp_path / "data", "500k"):
        answer = call(*options)
        assert answer.code == 5, answer.err
        assert "data/prepared/" in answer.err
        assert "check the path, permissions and space" in answer.err
        assert answer.err.count("\n") == 1
        assert not list(tmp_path.glob("data/prepared/*/.part-*"))
        cases = list(tmp_path.glob("data/prepared/*/case-*"))
        assert cases and all((case / "case.json").stat().st_size for case in cases)
        assert not list(tmp_path.glob("outputs/*/*"))
        enlarged = ["mount", "-o", "remount,size=50m", str(tmp_path / "data")]
        subprocess.run(enlarged, check=True)
        assert call(*options).code == 0
