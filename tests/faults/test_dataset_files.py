"""Dataset folders and tables that are wrong; more of them beside each reader's own tests."""

import csv
import os
import shutil

import numpy as np
import pytest

from attnseg.data import store
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.errors import DataError
from tests.data.test_nnunet import LABELS, SCAN, Dataset
from tests.data.uw_tree import CLASSES, Tree

SCANS = tuple(f"case{n}_day0" for n in range(1, 6))


@pytest.fixture
def tree(tmp_path):
    """Five patients, each with some of every organ, in pixels that nobody shares."""
    tree = Tree(tmp_path / "root", SCANS)
    rng = np.random.default_rng(3)
    tree.files = {name: rng.integers(0, 999, (4, 5)).astype(np.uint16) for name in tree.files}
    for (name, organ), _ in list(tree.rows.items()):
        tree.rows[name, organ] = f"{CLASSES.index(organ) + 1} 4"
    return tree


def options(root, *more):
    return (
        "experiment=smoke", "dataset=uw_madison", f"dataset.root={root}", "trainer.max_epochs=0",
        "dataset.limit_cases=null", "dataset.exclude=[]", *more,
    )  # fmt: skip


def refused(answer, message, code=3):
    assert answer.code == code, answer.err
    assert message in answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert "; " in answer.err  # what to do
    assert "Traceback" not in answer.out


def test_a_table_that_may_not_be_read(call, tree, monkeypatch):
    root = tree.write()
    original = type(root).open

    def denied(self, *arguments, **named):
        if self.name == "train.csv":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments, **named)

    monkeypatch.setattr(type(root), "open", denied)
    refused(call(*options(root)), "train.csv: ")


def test_a_picture_that_may_not_be_read(call, tree, monkeypatch):
    def denied(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("attnseg.data.readers.pictures.Image.open", denied)
    refused(call(*options(tree.write())), "Permission denied; restore the file")


ROWS = [(name.split("_")[0], name) for name in SCANS]
SPLITS = {
    "nobody trains": ([*["val"] * 3, *["test"] * 2], "dataset: "),
    "nobody at all": ([], "no cases left; see dataset.exclude and dataset.split.file"),
}


@pytest.mark.parametrize("fault", SPLITS)
def test_a_split_in_which_a_role_is_empty(call, tree, tmp_path, fault):
    roles, message = SPLITS[fault]
    with (tmp_path / "split.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("patient", "case", "role", "digest"))
        table.writerows((*row, role, "") for row, role in zip(ROWS, roles, strict=False))
    split = f"dataset.split.file={tmp_path / 'split.csv'}"
    refused(call(*options(tree.write(), split)), message)
    assert not list(tmp_path.glob("outputs/*/*/*"))


def test_more_folds_than_patients(call, tree, tmp_path):
    answer = call(*options(tree.write(), "dataset.split.folds=6"))
    refused(answer, "dataset.split.folds: 5 patients for 6 folds; use at most 5")


def test_a_case_to_exclude_that_is_not_there_is_warned_of(call, tree):
    answer = call(*options(tree.write(), "dataset.exclude=[case1_day0,case1_dya0]"))
    assert "Excluded, as listed in dataset.exclude: case1_day0" in answer.out
    assert "warning: dataset.exclude: no case case1_dya0; check the names" in answer.out


TABLES = {
    "equal rows": "case1_day0_slice_0001,stomach,3 4\n",
    "contradictory rows": "case1_day0_slice_0001,stomach,9 1\n",
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_row_twice(call, tree, fault):
    root = tree.write()
    with (root / "train.csv").open("a") as table:
        table.write(TABLES[fault])
    refused(call(*options(root)), "case1_day0_slice_0001, stomach appears twice; keep one row")


STRANGE = {
    "upwards": "../../case1_day0_slice_0001",
    "absolute": "/etc/passwd",
    "text for a number": "007",
}


@pytest.mark.parametrize("name", STRANGE)
def test_an_id_without_a_picture_opens_nothing_and_is_warned_of(call, tree, name):
    root = tree.write()
    with (root / "train.csv").open("a") as table:
        table.write(f"{STRANGE[name]},stomach,\n")
    answer = call(*options(root))
    assert answer.code == 0, answer.err
    assert f"1 slices without an image, {STRANGE[name]} the first" in answer.out


def test_an_id_with_nul(call, tree):
    root = tree.write()
    with (root / "train.csv").open("ab") as table:
        table.write(b"case1_day0\0_slice_0001,stomach,\n")
    answer = call(*options(root))
    assert answer.code in (0, 3), answer.err  # Python 3.11 and later read NUL as text
    assert "bug of ours" not in answer.err


def test_a_link_to_itself(call, tree):
    root = tree.write()
    path = sorted(root.rglob("*.png"))[0]
    path.unlink()
    path.symlink_to(path)
    refused(call(*options(root)), f"{path}: ")


def test_a_linked_picture_is_read_as_any_other(call, tree, tmp_path):
    """Downloads are often linked into place; what is no picture says nothing of its content."""
    root = tree.write()
    path = sorted(root.rglob("*.png"))[0]
    shutil.move(path, tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    assert call(*options(root)).code == 0
    (tmp_path / "secret").write_text("the secret")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    answer = call(*options(root))
    refused(answer, f"{path}: not a PNG image")
    assert "the secret" not in answer.out + answer.err


def test_names_with_spaces_and_letters_of_any_language_work(tmp_path):
    data = Dataset(tmp_path / "Daten für ärzte 数据")
    names = ("Müller, Hans (2)", "患者 7", "100% & more", "a'b")
    for name in names:
        data.case(name)
    reader = data.reader()
    cases = store.prepare_cases(reader, reader.cases(), tmp_path / "vor bereitet")
    assert sorted(case.case for case in cases) == sorted(names)
    for case in cases:
        assert np.array_equal(case.image[..., 0], SCAN)
        assert np.array_equal(case.mask, LABELS)
    assert store.prepare_cases(reader, reader.cases(), tmp_path / "vor bereitet") == cases


def test_the_whole_command_in_a_folder_with_a_space_and_an_umlaut(
    call, tree, tmp_path, monkeypatch
):
    root = tree.write().rename(tmp_path / "mein Ordner ü")
    answer = call(*options(f"'{root}'", "paths.outputs='alle läufe'", "paths.data='die daten'"))
    assert answer.code == 0, answer.err
    assert len(list(tmp_path.glob("alle läufe/*/*/*/*/metrics.json"))) == 1


def test_a_prepared_file_that_is_cut_off(call, tree, tmp_path):
    root = tree.write()
    assert call(*options(root)).code == 0
    shutil.rmtree(tmp_path / "outputs")
    for path in tmp_path.glob("data/prepared/*/case-*/image.npy"):
        path.write_bytes(path.read_bytes()[:130])
    answer = call(*options(root))
    refused(answer, "image.npy: damaged since it was prepared")
    shutil.rmtree(tmp_path / "data/prepared")  # as the message says
    assert call(*options(root)).code == 0


def test_a_description_of_a_prepared_case_that_is_cut_off_is_made_again(tree, tmp_path):
    reader = UWMadison(tree.write())
    cases = store.prepare_cases(reader, reader.cases(), tmp_path / "store")
    path = cases[0].folder / "case.json"
    path.write_text(path.read_text()[:50])
    assert store.prepare_cases(reader, reader.cases(), tmp_path / "store") == cases


def test_a_file_that_changes_between_preparation_and_training_is_read_again(tree, tmp_path):
    reader = UWMadison(tree.write())
    before = store.prepare_cases(reader, reader.cases(), tmp_path / "store")
    path = sorted(tree.root.rglob("*.png"))[0]
    tree.files = {name: pixels + 1 for name, pixels in tree.files.items()}
    tree.write()
    os.utime(path, ns=(1, 1))
    after = store.prepare_cases(reader, reader.cases(), tmp_path / "store")
    assert all(a.digest != b.digest for a, b in zip(after, before, strict=True))


def test_a_file_that_disappears_after_it_was_listed(tree, tmp_path):
    reader = UWMadison(tree.write())
    refs = reader.cases()
    refs[0].files[0].unlink()
    with pytest.raises(DataError, match=r"No such file or directory; restore it"):
        store.prepare_cases(reader, refs, tmp_path / "store")
