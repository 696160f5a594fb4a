"""Folders that cannot be written, full disks, several processes at one place."""

import multiprocessing
import shutil
import tempfile

import numpy as np
import pytest

from attnseg.data import store
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.errors import DataError
from attnseg.runs.facts import RunFacts
from attnseg.training.module import SegmentationModule
from tests.data.uw_tree import Tree
from tests.faults.runs import attempt
from tests.limits import HANG

SMOKE = ("experiment=smoke", "trainer.max_epochs=1", "trainer.limit_batches=1")


def refused(answer, message, code=5):
    assert answer.code == code, answer.err
    assert message in answer.err
    assert answer.err.count("\n") <= 3
    assert answer.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in answer.out


@pytest.mark.parametrize("key", ["paths.data", "paths.outputs"])
@pytest.mark.parametrize("place", ["/proc/nope", "/dev/null/x", "FILE"])
def test_a_folder_that_cannot_be_made_is_found_before_training(call, tmp_path, key, place):
    (tmp_path / "FILE").touch()
    answer = call(*SMOKE, f"{key}={place}")
    refused(answer, place)
    assert "Epoch" not in answer.out


def test_a_temporary_folder_that_is_missing_is_not_needed(call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TMPDIR", "/nope")
        patch.setattr(tempfile, "tempdir", "/nope")
        assert call(*SMOKE).code == 0


def test_a_bug_of_ours_with_nowhere_to_keep_its_traceback(call, monkeypatch):
    monkeypatch.setattr("attnseg.training.setup.load_dataset", lambda *a: [][0])
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/nope")
        answer = call("experiment=smoke")
    refused(answer, "IndexError: list index out of range; this is a bug of ours", code=1)


def test_processes_that_prepare_one_dataset_at_once(tmp_path):
    tree = Tree(tmp_path / "root", tuple(f"case{n}_day0" for n in range(1, 9)))
    rng = np.random.default_rng(0)
    tree.files = {name: rng.integers(0, 999, (4, 5)).astype(np.uint16) for name in tree.files}
    tree.write()
    folder = tmp_path / "store"

    def prepare(start):
        start.wait()
        reader = UWMadison(tree.root)
        store.prepare_cases(reader, reader.cases(), folder)

    context = multiprocessing.get_context("fork")
    for _ in range(3):  # the first makes, the others find, an outdated case in the way
        start = context.Barrier(4)
        workers = [context.Process(target=prepare, args=(start,)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(HANG)
        assert [worker.exitcode for worker in workers] == [0] * 4
        for path in folder.glob("case-*/case.json"):
            path.write_text("{}")
        assert sorted(p.name for p in folder.iterdir()) == [
            f"case-case{n}_day0" for n in range(1, 9)
        ]


def test_a_run_folder_that_is_deleted_during_the_run(tmp_path):
    def delete() -> None:
        begin = SegmentationModule.on_validation_epoch_start

        def faulty(self):
            shutil.rmtree(tmp_path / "outputs")
            begin(self)

        SegmentationModule.on_validation_epoch_start = faulty

    assert attempt(tmp_path, *SMOKE[1:], fault=delete) == 5
    output = (tmp_path / "output").read_text()
    line = output[output.rindex("error: ") :]
    assert str(tmp_path / "outputs") in line
    assert line.count("\n") == 1
    assert "Traceback" not in output
    assert attempt(tmp_path, *SMOKE[1:]) == 0


def test_classes_renamed_since_a_run_was_trained():
    facts = RunFacts(status="done", data={"classes": ["a", "b"]})
    facts.check_classes("run", ("a", "b"))
    RunFacts(status="new").check_classes("run", ("a", "b"))
    with pytest.raises(DataError, match=r"run: trained for the classes a, b, but the dataset has"):
        facts.check_classes("run", ("b", "a"))
    valued = RunFacts(status="done", data={"classes": ["a", "b"], "values": [3, 5]})
    valued.check_classes("run", ("a", "b"), (3, 5))
    facts.check_classes("run", ("a", "b"), (3, 5))  # of before values were noted
    for values in ((5, 3), None):
        with pytest.raises(DataError, match=r"for the classes 3, 5, but the dataset has"):
            valued.check_classes("run", ("a", "b"), values)
