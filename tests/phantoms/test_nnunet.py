"""The nnU-Net phantom, read back here with nibabel alone."""

import json

import nibabel as nib
import numpy as np
import pytest

from attnseg.phantoms.nnunet import make_mr, make_nnunet
from tests.limits import at_most

LARGE_BOWEL, SMALL_BOWEL, STOMACH = 1, 2, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("nnunet") / "Dataset900_Phantom"
    make_nnunet(root, "tiny")
    return root


def upright(path):
    """Return a file's array as [S, H, W]: feet up, front to back, right to left."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj)[::-1, ::-1].transpose(2, 1, 0)


def test_files_are_in_the_raw_format(dataset):
    def names(folder):
        return sorted(path.name for path in (dataset / folder).iterdir())

    train, test = [f"ABD_00{n}" for n in range(1, 6)], ["ABD_006", "ABD_007"]
    for cases, part in ((train, "Tr"), (test, "Ts")):
        assert names(f"labels{part}") == [f"{case}.nii.gz" for case in cases]
        assert names(f"images{part}") == [
            f"{case}_{channel}.nii.gz" for case in cases for channel in ("0000", "0001")
        ]
    assert json.loads((dataset / "dataset.json").read_text()) == {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "bowel": [1, 2], "small_bowel": [2], "stomach": [3]},
        "regions_class_order": [1, 2, 3],
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }


def test_channels_and_label_share_a_grid_of_their_own(dataset):
    affines, axes = [], set()
    for number in range(1, 6):
        names = [f"imagesTr/ABD_00{number}_000{channel}" for channel in (0, 1)]
        names.append(f"labelsTr/ABD_00{number}")
        files = [nib.load(dataset / f"{name}.nii.gz") for name in names]
        assert [file.get_data_dtype() for file in files] == [np.int16, np.int16, np.uint8]
        assert len({file.shape for file in files}) == 1
        assert all(np.array_equal(file.affine, files[0].affine) for file in files)
        assert all(spacing[0] != spacing[-1] for spacing in [files[0].header.get_zooms()])
        affines.append(tuple(files[0].affine.ravel()))
        axes.add(nib.aff2axcodes(files[0].affine))
    assert len(set(affines)) == 5
    assert len(axes) == 3


def test_the_files_hold_the_scans_that_were_made(dataset):
    """Turned back, the array is the made one: every flip and its affine agree."""
    for case, shape, spacing in (
        (0, (8, 60, 72), 5.2),
        (1, (8, 64, 68), 5.4),
        (2, (8, 60, 72), 5.2),
    ):
        images, label = make_mr(0, case, shape, spacing)
        for channel, image in enumerate(images):
            path = dataset / "imagesTr" / f"ABD_00{case + 1}_000{channel}.nii.gz"
            assert np.array_equal(upright(path), image)
        assert np.array_equal(upright(dataset / "labelsTr" / f"ABD_00{case + 1}.nii.gz"), label)


def test_fluid_is_dark_in_t1_and_bright_in_t2():
    violations = []
    for case in range(7):
        (t1, t2), label = make_mr(0, case, (8, 60, 72), 5.2)
        assert np.array_equal(np.unique(label), np.arange(4)), case
        for fluid in (STOMACH, SMALL_BOWEL):
            first, second = (
                np.median(image[label == fluid]) / np.median(image[label == LARGE_BOWEL])
                for image in (t1, t2)
            )
            if not (first < 0.8 and second > 1.5):
                violations.append(f"case {case}, organ {fluid}: {first} in T1, {second} in T2")
    assert violations == []


def test_small_bowel_lies_over_large_bowel_and_the_stomach_over_both(monkeypatch):
    seen = []

    class Everywhere(make_mr.__globals__["Abdomen"]):
        def __init__(self, *args):
            super().__init__(*args)
            self.large_bowel[:], self.small_bowel[2:], self.stomach[4:] = -9, -9, -9
            self.small_bowel[:2], self.stomach[:4] = 9, 9
            seen.append(self)

    monkeypatch.setitem(make_mr.__globals__, "Abdomen", Everywhere)
    label = make_mr(0, 0, (6, 12, 14), 25.0)[1]
    assert seen
    assert [np.unique(part).tolist() for part in label] == [[1], [1], [2], [2], [3], [3]]


def test_presets_are_made_in_time(tmp_path):
    with at_most(seconds=2):
        make_nnunet(tmp_path / "tiny", "tiny")
    with at_most(seconds=20):
        make_nnunet(tmp_path / "demo", "demo")
    assert len(list((tmp_path / "demo" / "labelsTr").iterdir())) == 10
    assert len(list((tmp_path / "demo" / "labelsTs").iterdir())) == 4
