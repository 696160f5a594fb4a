"""ACDC as downloaded, written by hand here: two labelled frames of each patient, and all others."""

import nibabel as nib
import numpy as np
import pytest

from attnseg.data.reader import check_case
from attnseg.data.readers.acdc import ACDC
from tests.data.refusals import check_all

FRAME = np.arange(60, dtype=np.int16).reshape(3, 4, 5)  # slices, rows, columns
LABELS = (FRAME % 4).astype(np.uint8)


def save(path, voxels, sizes=(1.5, 1.5, 10.0)):
    affine = np.diag([-sizes[0], -sizes[1], sizes[2], 1])
    nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), affine), path)


def download(root, patients=("training/patient001", "training/patient002", "testing/patient101")):
    for number, patient in enumerate(patients):
        folder = root / patient
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\n")
        (folder / f"._{folder.name}_frame01.nii.gz").write_bytes(b"\0\5\26\7")
        save(folder / f"{folder.name}_4d.nii.gz", FRAME)
        for frame in ("01", "12"):
            save(folder / f"{folder.name}_frame{frame}.nii.gz", FRAME + number)
            save(folder / f"{folder.name}_frame{frame}_gt.nii.gz", LABELS)
    return root


def test_frames_of_a_patient_stay_together(tmp_path):
    reader = ACDC(download(tmp_path / "ACDC database"))
    refs = reader.cases()
    assert [(ref.patient, ref.case, ref.role) for ref in refs] == [
        ("patient001", "patient001_frame01", None), ("patient001", "patient001_frame12", None),
        ("patient002", "patient002_frame01", None), ("patient002", "patient002_frame12", None),
        ("patient101", "patient101_frame01", "test"), ("patient101", "patient101_frame12", "test"),
    ]  # fmt: skip
    case = reader.read(refs[2])
    check_case(case, refs[2], reader)
    assert np.array_equal(case.image[..., 0], FRAME + 1)
    assert np.array_equal(case.mask, LABELS)
    assert case.spacing == pytest.approx((10, 1.5, 1.5))


def test_frames_without_labels_are_named_and_left_out(tmp_path, caplog):
    root = download(tmp_path)
    for frame in ("01", "12"):
        (root / f"testing/patient101/patient101_frame{frame}_gt.nii.gz").unlink()
    assert len(ACDC(root).cases()) == 4
    assert "patient101_frame01.nii.gz, patient101_frame12.nii.gz" in caplog.text


def test_the_folder_of_the_archive_and_folders_that_are_no_patients(tmp_path, caplog):
    download(tmp_path / "database")
    (tmp_path / "database/training/Patient_3").mkdir()
    assert [ref.case for ref in ACDC(tmp_path).cases()] == [
        ref.case for ref in ACDC(tmp_path / "database").cases()
    ]
    assert "database/training: no patients, passed over: Patient_3" in caplog.text


def first(root):
    return root / "training/patient001"


FAULTS = {
    "another folder": (lambda root: (root / "training").rename(root / "train"), "no labelled"),
    "a label without image": (
        lambda root: (first(root) / "patient001_frame01.nii.gz").unlink(),
        "no image patient001_frame01 beside it",
    ),
    "a frame twice": (
        lambda root: save(first(root) / "patient001_frame01.nii", FRAME), "is there, too"
    ),
    "a fourth class": (
        lambda root: save(first(root) / "patient001_frame01_gt.nii.gz", LABELS + 1),
        "unknown labels 4",
    ),
    "slices that are no slices": (
        lambda root: [
            save(first(root) / f"patient001_frame01{end}.nii.gz", array, (10, 1.5, 1.5))
            for end, array in (("", FRAME), ("_gt", LABELS))
        ],
        "its slices do not lie along z",
    ),
}  # fmt: skip


def test_faults_are_named(tmp_path):
    def attempt(folder, edit):
        root = download(folder / "root", ("training/patient001",))
        edit(root)
        reader = ACDC(root)
        reader.read(reader.cases()[0])

    check_all(FAULTS, attempt, tmp_path)
