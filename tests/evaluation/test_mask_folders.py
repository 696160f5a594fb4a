"""Folders of masks of other programs: pairs by name, whatever else lies beside them."""

import logging
import os
import re
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from attnseg.data import parallel
from attnseg.errors import ConfigError, DataError
from attnseg.evaluation.mask_folders import find_patients, pair_files, score_folders
from attnseg.metrics.profiles.strict import Strict

MASK = np.zeros((6, 8, 3), np.uint8)
MASK[1:4, 2:6, 1] = 1


@pytest.fixture
def folders(tmp_path):
    for name in ("pred", "truth"):
        (tmp_path / name).mkdir()
    return SimpleNamespace(pred=tmp_path / "pred", truth=tmp_path / "truth")


def save(path, mask=MASK, affine=None):
    if path.suffix == ".hdr":
        nib.save(nib.Nifti1Pair(mask, np.eye(4)), path)
        return
    if path.name.lower().endswith((".nii", ".nii.gz")):
        written = path.with_name("written" + (".nii.gz" if path.name[-1] in "zZ" else ".nii"))
        nib.save(nib.Nifti1Image(mask, np.eye(4) if affine is None else affine), written)
    else:
        written = path.with_name("written.png")
        Image.fromarray(mask[:, :, 1]).save(written)
    written.rename(path)


@pytest.mark.parametrize(
    ("truth", "pred"),
    [
        ("a.nii.gz", "a.nii"), ("a.NII.GZ", "a.nii.gz"), ("a.NII", "a.nii.gz"), ("b.PNG", "b.png"),
        ("scan.v2.nii.gz", "scan.v2.nii"), ("1.2.840.5.png", "1.2.840.5.PNG"),
        ("a.b..nii", "a.b..nii"), ("a.nii.gz", "a.hdr"), ("a.b.hdr", "a.b.hdr"),
        ("x.nii.png", "x.nii.png"), ("e\u0301 数据 #1=[2].nii", "\u00e9 数据 #1=[2].nii.gz"),
    ],
)  # fmt: skip
def test_pairs_are_found_by_name_with_endings_in_any_spelling(folders, truth, pred):
    save(folders.truth / truth)
    save(folders.pred / pred)
    scores = score_folders(folders.pred, folders.truth, [Strict()])
    dice = scores[scores["metric"] == "dice"]
    (case,) = set(dice["case"])
    assert not case.lower().endswith((".nii", ".gz", ".png")) or truth == "x.nii.png"
    assert (dice["value"] == 1).all()


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.nii", "a.nii.gz"), ("a.png", "a.PNG"), ("a.nii.gz", "a.NII.GZ"), ("a.png", "a.tif"),
     ("a.b.nii", "a.b.png"), ("\u00e9.nii", "e\u0301.nii"), ("a.hdr", "a.nii.gz")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["pred", "truth"])
def test_two_files_of_a_case_are_both_named(folders, first, second, where):
    for folder in (folders.pred, folders.truth):
        (folder / first).touch()
    (getattr(folders, where) / second).touch()
    with pytest.raises(DataError) as error:
        pair_files(folders.pred, folders.truth)
    (problem,) = error.value.problems
    assert first in problem
    assert second in problem
    assert problem.startswith(str(getattr(folders, where)))


def test_cases_of_one_side_are_all_named(folders):
    for number in range(30):
        (folders.pred / f"case.{number:02d}.nii.gz").touch()
    for name in ("case.07.nii.gz", "late.png", "later.nii"):
        (folders.truth / name).touch()
    with pytest.raises(DataError) as error:
        pair_files(folders.pred, folders.truth)
    truth, pred = error.value.problems
    assert "truth/late.png: no file of this name in" in truth
    assert "later.nii; add or remove them" in truth
    assert "pred/case.00.nii.gz: no file of this name in" in pred
    assert "and 8 more" in pred  # of 29: the first, 20 by name
    assert "case.07" not in pred


def test_what_is_passed_over_is_counted_and_named(folders, caplog):
    save(folders.truth / "a.nii.gz")
    save(folders.pred / "a.nii.gz")
    for name in ("._a.nii.gz", ".DS_Store", "notes.txt", "a.mha", "Thumbs.db", "dataset.json"):
        (folders.pred / name).write_bytes(b"\0\5\26\7")
    (folders.pred / "b.nii.gz").mkdir()
    with caplog.at_level(logging.INFO, "attnseg"):
        pairs = pair_files(folders.pred, folders.truth)
    assert list(pairs) == ["a"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{folders.pred}: 7 passed over: .DS_Store, ._a.nii.gz, ")
    assert line.endswith("and 2 more")


@pytest.mark.parametrize("where", ["pred", "truth"])
def test_a_folder_without_masks_is_refused(folders, where):
    for folder in (folders.pred, folders.truth):
        (folder / "._a.nii.gz").touch()
        if folder.name != where:
            (folder / "a.nii.gz").touch()
    with pytest.raises(DataError, match=rf"{where}: no masks; expected files"):
        pair_files(folders.pred, folders.truth)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is no regular expression"), ("p", "has 0 groups"), ("(p)(q)", "has 2 groups"),
        ("", "has 0 groups"),
    ],
)  # fmt: skip
def test_patterns_that_cannot_be(pattern, message):
    with pytest.raises(ConfigError, match=f"patient: .*{message}"):
        find_patients(["p1_a"], pattern)


@pytest.mark.parametrize(
    ("pattern", "without"),
    [(r"^(x\d)", 3), (r"^(p1)_", 2), (r"(q*)", 3), (r"_(c?)$", 2), (r"(p\d)_[ab]", 1)],
)
def test_a_pattern_that_matches_not_all_names_is_refused(pattern, without):
    with pytest.raises(DataError, match=rf"finds no patient in {without} of 3 names"):
        find_patients(["p1_a", "p2_b", "p3_c"], pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(p)\d", "makes all 3 cases those of one patient, 'p'"),
        (r"(.*)", "gives each of the 3 cases a patient of its own"),
        (r"^(p\d+_\w)", "gives each of the 3 cases a patient of its own"),
        (r"^(p\d)\d?_", ""),
        (None, ""),
    ],
)
def test_a_pattern_that_groups_all_or_nothing_is_warned_of(caplog, pattern, message):
    patients = find_patients(["p1_a", "p12_b", "p3_c"], pattern)
    assert set(patients) == {"p1_a", "p12_b", "p3_c"}
    assert bool(caplog.records) == bool(message)
    assert re.search(re.escape(message), caplog.text)


def test_masks_on_other_grids_are_all_named(folders):
    for name in ("same", "moved", "cropped", "picture", "coarse"):
        save(folders.truth / f"{name}.nii")
    save(folders.pred / "same.nii")
    save(folders.pred / "moved.nii", affine=np.array(
        [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    ))  # fmt: skip
    save(folders.pred / "cropped.nii", MASK[:5])
    save(folders.pred / "picture.png")
    save(folders.pred / "coarse.nii", affine=np.diag([1, 1, 1.5, 1]))
    with pytest.raises(DataError) as error:
        score_folders(folders.pred, folders.truth, [Strict()])
    problems = "\n".join(error.value.problems)
    assert len(error.value.problems) == 4
    for message in ("moved.nii: lies up to 1 mm", "cropped.nii: 5x8x3 voxels, but",
                    "picture.png: of another kind", "coarse.nii: lies up to 1 mm"):  # fmt: skip
        assert message in problems


def test_pipes_and_other_things_that_are_no_files_are_named(folders):
    save(folders.truth / "a.nii")
    os.mkfifo(folders.pred / "a.nii")  # Reading it would wait forever.
    with pytest.raises(DataError, match=r"pred/a\.nii: not a file; remove it"):
        score_folders(folders.pred, folders.truth, [Strict()])


def test_other_labels_than_those_of_a_binary_truth_are_refused(folders):
    save(folders.truth / "a.nii", MASK * 255)
    save(folders.pred / "a.nii", MASK * 127)
    with pytest.raises(DataError, match=r"pred/a\.nii: label 127, but .* 0 and 255; convert one"):
        score_folders(folders.pred, folders.truth, [Strict()])
    save(folders.pred / "a.nii", MASK)
    scores = score_folders(folders.pred, folders.truth, [Strict()])
    assert (scores["value"][scores["metric"] == "dice"] == 1).all()


@pytest.mark.parametrize("classes", [[], ["a", "a"], {"": 1}, {"a\nb": 1}])
def test_classes_without_a_name_of_their_own_are_refused(folders, classes):
    save(folders.truth / "a.nii")
    save(folders.pred / "a.nii")
    with pytest.raises(ConfigError, match=r"classes: .*; "):
        score_folders(folders.pred, folders.truth, [Strict()], classes)


def test_one_folder_for_both_is_warned_of(folders, caplog):
    save(folders.truth / "a.nii")
    folders.pred.rmdir()
    folders.pred.symlink_to(folders.truth)
    score_folders(folders.pred, folders.truth, [Strict()])
    assert "predictions and truth are one folder, so every score is perfect" in caplog.text


def test_several_processes_score_the_same_and_name_every_problem(folders, monkeypatch):
    for number in range(5):
        shifted = np.roll(MASK, number % 3, 0)
        save(folders.truth / f"{number}.nii.gz", MASK)
        save(folders.pred / f"{number}.nii.gz", shifted)
    alone = score_folders(folders.pred, folders.truth, [Strict()])
    assert alone["value"].nunique() > 3
    monkeypatch.setattr(parallel, "count_processes", lambda items: 2)
    pd.testing.assert_frame_equal(score_folders(folders.pred, folders.truth, [Strict()]), alone)
    save(folders.truth / "1.nii.gz", MASK * 0.5)
    (folders.pred / "3.nii.gz").write_bytes(b"damaged")
    with pytest.raises(DataError) as caught:
        score_folders(folders.pred, folders.truth, [Strict()])
    assert [re.search(r"\d\.nii\.gz", problem)[0][0] for problem in caught.value.problems] == [
        "1",
        "3",
    ]
