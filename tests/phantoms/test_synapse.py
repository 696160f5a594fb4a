"""The Synapse phantom, read back here with nibabel, NumPy and h5py alone."""

import h5py
import nibabel as nib
import numpy as np
import pytest

from attnseg.phantoms.synapse import PACKAGE_LABELS, TEST, TRAIN, make_ct, make_synapse
from tests.limits import at_most

LIVER, RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN = 6, 2, 3, 1
# HU of organs, by label.
EXPECTED = {1: 122, 2: 165, 3: 165, 4: 8, 6: 106, 8: 158, 9: 140, 10: 160, 11: 88}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("synapse") / "raw"
    make_synapse(root, "tiny")
    return root


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    root = tmp_path_factory.mktemp("synapse") / "package"
    make_synapse(root, "tiny", layout="package")
    return root


def load(root, case):
    folder = root / "RawData" / "Training"
    return [nib.load(folder / kind / f"{kind}{case:04d}.nii.gz") for kind in ("img", "label")]


def upright(image):
    """Return a file's array as [S, H, W]: feet up, front to back, right to left."""
    return np.asarray(nib.as_closest_canonical(image).dataobj)[::-1, ::-1].transpose(2, 1, 0)


def test_files_are_the_downloads_with_the_published_case_numbers(raw):
    names = sorted(str(path.relative_to(raw)) for path in raw.rglob("*.nii.gz"))
    numbers = ("0005", "0006", "0007", "0008", "0009", "0022")  # 4 to train on, 2 to test on
    assert names == [
        f"RawData/Training/{kind}/{kind}{n}.nii.gz" for kind in ("img", "label") for n in numbers
    ]


def test_the_published_split_is_18_and_12_of_the_30_labelled_cases():
    assert (len(TRAIN), len(TEST)) == (18, 12)
    assert sorted(TRAIN + TEST) == [*range(1, 11), *range(21, 41)]


def test_arrays_lie_differently_but_image_and_label_alike(raw):
    axes = set()
    for case in TRAIN[:4]:
        image, label = load(raw, case)
        assert np.array_equal(image.affine, label.affine)
        assert image.shape == label.shape
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        axes.add("".join(nib.aff2axcodes(image.affine)))
        tilt = np.abs(image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0))
        assert 0.005 < np.sort(tilt, axis=0)[1].max() < 0.3  # askew, by some degrees only
        across = nib.as_closest_canonical(image).header.get_zooms()
        assert across == pytest.approx((5.2, 5.2, 5.0) if case in (5, 7) else (5.4, 5.4, 4.0))
        assert image.header.get_xyzt_units()[0] == "mm"
    assert axes == {"LAS", "RAS", "LPS", "PSL"}


def test_the_files_hold_the_scan_that_was_made(raw):
    """Turned back, the array is the made one: every flip and its affine agree."""
    for turn, case in enumerate(TRAIN[:4]):
        shape, spacing = ((8, 60, 72), 5.2) if turn % 2 == 0 else ((8, 64, 70), 5.4)
        made = make_ct(0, case, shape, spacing)
        for image, array in zip(load(raw, case), made, strict=True):
            assert np.array_equal(upright(image), array)


def test_organs_are_on_their_sides(raw):
    for case in TRAIN[:4]:
        label = load(raw, case)[1]
        array = np.asarray(label.dataobj)
        x = {
            organ: nib.affines.apply_affine(label.affine, np.argwhere(array == organ))[:, 0].mean()
            for organ in (LIVER, RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN)
        }  # mm; x grows to the patient's right
        middle = (x[RIGHT_KIDNEY] + x[LEFT_KIDNEY]) / 2
        assert x[RIGHT_KIDNEY] > middle + 30
        assert x[LIVER] > middle + 15
        assert x[SPLEEN] < middle - 40


def test_every_organ_is_there_however_coarse_the_pixels():
    cases = [*TRAIN[:4], *TEST[:2]]
    organs = {case: np.unique(make_ct(0, case, (8, 60, 72), 5.2)[1]).tolist() for case in cases}
    assert organs == {case: list(range(14)) for case in cases}


@pytest.mark.parametrize("case", TRAIN[:3])
def test_tissues_have_their_hounsfield_units(case):
    image, label = make_ct(0, case, (10, 112, 136), 2.7)
    for organ, expected in EXPECTED.items():
        # Contrast differs by a tenth, and thin organs mix with what is around them.
        assert np.median(image[label == organ]) == pytest.approx(expected, rel=0.2, abs=15), organ
    air = image[:, :5]  # before the patient
    assert np.median(air) == pytest.approx(-1000, abs=2)
    assert air.std() == pytest.approx(12, abs=1.5)  # noise, little of it cut off at -1024
    assert image.max() > 300  # bone


def test_the_package_is_the_same_scans_clipped_and_renumbered(raw, package):
    pairs = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}
    assert pairs == PACKAGE_LABELS
    names = sorted(path.name for path in (package / "train_npz").iterdir())
    assert names == [f"case{c:04d}_slice{s:03d}.npz" for c in (5, 6, 7, 9) for s in range(8)]
    image, label = (upright(volume) for volume in load(raw, 6))
    for index in range(8):
        path = package / "train_npz" / f"case0006_slice{index:03d}.npz"
        with np.load(path, allow_pickle=False) as arrays:
            assert arrays["image"].dtype == np.float32
            # Rows run to the left, columns to the back: transposed.
            expected = (np.clip(image[index].T, -125, 275) + 125.0) / 400
            assert np.allclose(arrays["image"], expected, atol=1e-6)
            renumbered = np.vectorize(lambda v: pairs.get(v, 0))(label[index].T)
            assert np.array_equal(arrays["label"], renumbered)
    names = sorted(path.name for path in (package / "test_vol_h5").iterdir())
    assert names == ["case0008.npy.h5", "case0022.npy.h5"]
    with h5py.File(package / "test_vol_h5" / "case0022.npy.h5") as file:
        assert file["image"].shape == file["label"].shape == (8, 70, 64)
        assert (file["image"][:].min(), file["image"][:].max()) == (0, 1)
        assert set(np.unique(file["label"][:])) == set(range(9))


def test_both_layouts_can_be_made_in_time(tmp_path):
    with at_most(seconds=2):
        make_synapse(tmp_path / "tiny", "tiny")
    with at_most(seconds=20):
        make_synapse(tmp_path / "demo", "demo")
    labels = sorted((tmp_path / "demo" / "RawData" / "Training" / "label").iterdir())
    assert len(labels) == 12
    for path in labels:
        assert np.array_equal(np.unique(np.asarray(nib.load(path).dataobj)), np.arange(14)), path


def test_unknown_layout(tmp_path):
    with pytest.raises(ValueError, match="raw, package"):
        make_synapse(tmp_path / "new", "tiny", layout="zip")
    assert list(tmp_path.iterdir()) == []
