"""The phantom of ACDC, read back here with nibabel alone."""

import nibabel as nib
import numpy as np
import pytest
from numpy.random import default_rng

from attnseg.phantoms.acdc import GROUPS, Heart, make_acdc

RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = 1, 2, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("acdc") / "database"
    make_acdc(root, "tiny")
    return root


def test_files_are_those_of_the_download(dataset):
    patients = {
        part: sorted(path.name for path in (dataset / part).iterdir())
        for part in ("training", "testing")
    }
    assert patients == {
        "training": [f"patient00{n}" for n in range(1, 6)],
        "testing": ["patient006", "patient007"],
    }
    for folder in dataset.glob("*/*"):
        info = dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines())
        assert info["ED"] == "1"
        assert info["Group"] in GROUPS
        frames = [f"{folder.name}_frame{int(info[time]):02d}" for time in ("ED", "ES")]
        files = {f"{frame}{end}.nii.gz" for frame in frames for end in ("", "_gt")}
        assert {path.name for path in folder.iterdir()} == files | {"Info.cfg"}
        scans = [nib.load(folder / name) for name in sorted(files)]
        assert len({scan.shape for scan in scans}) == 1
        assert all(np.array_equal(scan.affine, scans[0].affine) for scan in scans)
        sizes = scans[0].header.get_zooms()
        assert sizes[2] > 2 * max(sizes[:2])
        assert [scan.get_data_dtype() for scan in scans] == [np.int16, np.uint8] * 2


def draw(patient, group, systole):
    shape = (8, 60, 64)
    return Heart(default_rng([patient]), default_rng([patient, systole]), shape, 3, group, systole)


def test_the_myocardium_lies_around_the_left_ventricle_which_contracts():
    for patient, group in enumerate(GROUPS):
        rest, beat = (draw(patient, group, systole).labels() for systole in (False, True))
        for labels in (rest, beat):
            assert set(np.unique(labels)) == {0, 1, 2, 3}
            cavity = labels == LEFT_VENTRICLE
            for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):
                beside = np.roll(cavity, step, axis) & ~cavity
                assert (labels[beside] == MYOCARDIUM).all(), group
        for label in (RIGHT_VENTRICLE, LEFT_VENTRICLE):
            assert (beat == label).sum() < 0.9 * (rest == label).sum(), group
        middle = rest[5]
        right, left = (np.argwhere(middle == label)[:, 1].mean() for label in (1, 3))
        assert right < left  # the patient's right is on the left of the picture


def test_blood_is_bright_and_the_wall_dark():
    for patient, group in enumerate(GROUPS):
        heart = draw(patient, group, systole=False)
        image, labels = heart.picture(), heart.labels()
        assert image.dtype == np.int16
        blood, wall = (np.median(image[labels == label]) for label in (3, 2))
        assert blood > 2 * wall
