"""Wrong data and places: one line on stderr, the right exit code. Keys: tests/faults."""

import pytest

from tests.data.uw_tree import Tree


def break_rle(root):
    tree = Tree(root, ("case1_day0", "case2_day0", "case3_day0"))
    tree.rows["case2_day0_slice_0002", "stomach"] = "1 2 3"
    tree.write()


def two_patients(root):
    Tree(root, ("case1_day0", "case1_day1", "case2_day0")).write()


def nothing_to_see(root):
    Tree(root, ("case1_day0", "case2_day0", "case3_day0")).write()


DATA_FAULTS = {
    "root missing": (lambda root: None, "no such folder; set dataset.root"),
    "root a file": (lambda root: root.touch(), "no such folder"),
    "root empty": (lambda root: root.mkdir(), "train.csv: not found"),
    "broken run-length code": (break_rle, "case2_day0_slice_0002, stomach: 3 numbers"),
    "too few patients": (two_patients, "2 patients cannot be split"),
    "no organ at all": (nothing_to_see, "no class at all in the val split"),
}


@pytest.mark.parametrize("dataset", ["phantom", "uw_madison"])
@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_wrong_data(call, tmp_path, dataset, fault):
    prepare, message = DATA_FAULTS[fault]
    prepare(tmp_path / "root")
    answer = call(f"dataset={dataset}", "model.size=tiny", f"dataset.root={tmp_path / 'root'}")
    assert answer.code == 3
    assert message in answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert not list(tmp_path.glob("outputs/*/*/*"))  # no run folder for a run that never was


def test_an_output_folder_that_cannot_be_made(call, tmp_path):
    (tmp_path / "file").touch()
    answer = call("experiment=smoke", f"paths.outputs={tmp_path}/file/outputs")
    assert answer.code == 5
    assert answer.err.count("\n") == 1


def test_a_bug_of_ours_says_so_and_keeps_the_traceback(call, monkeypatch):
    monkeypatch.setattr("attnseg.training.setup.load_dataset", lambda *a: [][0])
    answer = call("experiment=smoke")
    assert answer.code == 1
    assert "IndexError: list index out of range; this is a bug of ours" in answer.err
    trace = answer.err.rsplit(" ", 1)[1].strip()
    with open(trace) as file:
        assert "Traceback" in file.read()


def test_a_loss_that_is_not_finite_stops_the_run(call, tmp_path):
    answer = call(
        "experiment=smoke", "optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip=null"
    )
    assert answer.code == 2
    assert "the loss became nan at step" in answer.err
    assert "case" in answer.err
    assert answer.err.count("\n") == 1
    (record,) = tmp_path.glob("outputs/*/*/*/*/run.json")
    assert '"status": "failed"' in record.read_text()
