"""Both layouts are written by hand here, voxel by voxel."""

import csv
import gzip
import logging
import pickle
from importlib.resources import files

import h5py
import nibabel as nib
import numpy as np
import pytest

from attnseg.data.readers.synapse import Synapse
from attnseg.errors import DataError
from tests.data.refusals import check_all

# Feet up, front to back, right to left, as the reader returns it: every label of the download once.
LABELS = np.arange(16, dtype=np.uint8).reshape(2, 2, 4) % 14
HOUNSFIELD = (LABELS.astype(np.int16) - 1) * 100
SIZES = (0.7, 0.8, 3.0)  # mm along x, y, z
# By hand: where each of the download's labels 0..13 goes.
TRANSUNET = [0, 7, 4, 3, 2, 0, 5, 8, 1, 0, 0, 6, 0, 0]
CASCADE = [0, 1, 2, 3, 4, 0, 5, 6, 7, 0, 0, 8, 0, 0]
# And each of the package's labels 0..8 in CASCADE's order.
PACKAGE_TO_CASCADE = [0, 7, 4, 3, 2, 5, 8, 1, 6]


@pytest.fixture(autouse=True)
def _logs(caplog):
    logging.getLogger("attnseg").propagate = True
    caplog.set_level(logging.WARNING, "attnseg")


def volume(path, voxels, moved=0.0, dtype=None):
    """Write voxels, given feet up, front to back, right to left, in the order of the download."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-SIZES[0], SIZES[1], SIZES[2], 1.0])  # x to the left, y to the front
    affine[0, 3] = moved
    array = np.asarray(voxels, dtype).transpose(2, 1, 0)[:, ::-1]
    nib.save(nib.Nifti1Image(array, affine), path)


def raw(training, numbers=("0001",)):
    for number in numbers:
        volume(training / "img" / f"img{number}.nii.gz", HOUNSFIELD)
        volume(training / "label" / f"label{number}.nii.gz", LABELS)
    return training


def package(root, case="case0005", numbers=(2, 10), test="case0008"):
    """Slices of 3 x 3 pixels with the slice's number in the image, and the labels 0 to 8."""
    (root / "train_npz").mkdir(parents=True)
    (root / "test_vol_h5").mkdir()
    label = np.arange(9, dtype=np.float32).reshape(3, 3)
    for number in numbers:
        image = np.full((3, 3), number / 100)
        np.savez(root / "train_npz" / f"{case}_slice{number}.npz", image=image, label=label)
    with h5py.File(root / "test_vol_h5" / f"{test}.npy.h5", "w") as file:
        file["image"] = np.linspace(0, 1, 18).reshape(2, 3, 3)
        file["label"] = np.stack([label, label.T])
    return root


def reads(reader):
    return [reader.read(ref) for ref in reader.cases()]


@pytest.mark.parametrize("inside", ["RawData/Training", "Training", "."])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, TRANSUNET),
        ({"order": "cascade"}, CASCADE),
        ({"organs": 13}, range(14)),
        ({"organs": 13, "order": "cascade"}, range(14)),
    ],
)
def test_the_download_reads_voxel_by_voxel(tmp_path, inside, options, expected):
    raw(tmp_path / "my späce" / inside)
    case = reads(Synapse(tmp_path / "my späce", **options, window=(-100, 240)))[0]
    assert np.array_equal(case.mask, np.array(expected, np.uint8)[LABELS])
    assert case.mask.dtype == np.uint8
    assert case.image.dtype == np.int16
    assert np.array_equal(case.image, HOUNSFIELD[..., None])
    assert case.spacing == pytest.approx((3.0, 0.8, 0.7))
    assert case.window == (-100, 240)
    assert np.allclose(np.diag(case.affine), (-0.7, 0.8, 3.0, 1))


def test_class_names_follow_the_order():
    by_label = Synapse(".", organs=13).classes
    assert by_label[10] == "pancreas"  # label 11
    for order, places in (("transunet", TRANSUNET), ("cascade", CASCADE)):
        names = Synapse(".", order=order).classes
        assert {names[at - 1]: n for n, at in enumerate(places) if at} == {
            by_label[n - 1]: n for n, at in enumerate(places) if at
        }
    assert Synapse(".").classes == (
        "aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen",
        "stomach",
    )  # fmt: skip


def test_cases_of_the_download_have_no_roles(tmp_path):
    refs = Synapse(raw(tmp_path, ("0010", "0002"))).cases()
    assert [(r.case, r.patient, r.role) for r in refs] == [
        ("case0002", "case0002", None), ("case0010", "case0010", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "places"), [("transunet", range(9)), ("cascade", PACKAGE_TO_CASCADE)]
)
def test_the_package_reads_voxel_by_voxel(tmp_path, order, places, caplog):
    reader = Synapse(package(tmp_path), order=order)
    refs = reader.cases()
    assert [(r.case, r.patient, r.role) for r in refs] == [
        ("case0005", "case0005", "train"), ("case0008", "case0008", "test"),
    ]  # fmt: skip
    train, test = (reader.read(ref) for ref in refs)
    label = np.array(places, np.uint8).reshape(3, 3)
    assert np.array_equal(train.mask, [label, label])
    assert train.image[:, 0, 0, 0].tolist() == pytest.approx([0.02, 0.10])  # slice 2 before 10
    assert "case0005: no slice between 2 and 10" in caplog.text
    assert np.array_equal(test.mask, [label, label.T])
    assert np.array_equal(test.image, np.linspace(0, 1, 18, dtype=np.float32).reshape(2, 3, 3, 1))
    for case in (train, test):
        assert case.image.dtype == np.float32
        assert (case.spacing, case.affine, case.window) == (None, None, (0, 1))


def test_all_pairs_that_are_broken_are_named_at_once(tmp_path):
    raw(tmp_path, ("0001", "0002", "0003"))
    (tmp_path / "label" / "label0001.nii.gz").unlink()
    (tmp_path / "img" / "img0003.nii.gz").unlink()
    (tmp_path / "img" / "img4.nii.gz").touch()
    (tmp_path / "img" / "._img0002.nii.gz").touch()  # as macOS leaves them
    with pytest.raises(DataError) as error:
        Synapse(tmp_path).cases()
    names = [problem.split(": ")[0].rsplit("/")[-1] for problem in error.value.problems]
    assert names == ["img4.nii.gz", "img0001.nii.gz", "label0003.nii.gz"]


def label_of(values):
    return lambda root: volume(root / "label/label0001.nii.gz", values)


RAW_FAULTS = {
    "labels out of range": (
        label_of(LABELS + 3),
        "label0001.nii.gz: unknown labels 14, 15, 16 (known are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9,",
    ),
    "negative label": (label_of(LABELS.astype(np.int16) - 1), "unknown labels -1 "),
    "labels not whole": (label_of(LABELS / np.float32(2)), "no whole numbers, such as 0.5, 1.5"),
    "cropped label": (label_of(LABELS[:1]), "4x2x1 voxels, but img0001.nii.gz has 4x2x2"),
    "moved label": (
        lambda root: volume(root / "label/label0001.nii.gz", LABELS, moved=9),
        "lies up to 9 mm away from img0001.nii.gz",
    ),
    "truncated image": (
        lambda root: (root / "img/img0001.nii.gz").write_bytes(gzip.compress(b"x" * 400)),
        "img0001.nii.gz: not a readable NIfTI file",
    ),
}


def test_faults_of_the_download_are_named(tmp_path):
    def attempt(folder, edit):
        raw(folder)
        edit(folder)
        reads(Synapse(folder))

    check_all(RAW_FAULTS, attempt, tmp_path)


def test_both_broken_files_of_a_case_are_named(tmp_path):
    raw(tmp_path)
    for name in ("img/img0001.nii.gz", "label/label0001.nii.gz"):
        (tmp_path / name).write_text("hello")
    with pytest.raises(DataError) as error:
        reads(Synapse(tmp_path))
    assert len(error.value.problems) == 2


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def arrays(**changed):
    """Write slice 2 with other arrays; None leaves one out."""

    def edit(root):
        content = {"image": np.zeros((3, 3)), "label": np.zeros((3, 3))} | changed
        content = {name: array for name, array in content.items() if array is not None}
        np.savez(root / "train_npz/case0005_slice2.npz", **content)

    return edit


def volume_of(**changed):
    def edit(root):
        content = {"image": np.zeros((2, 3, 3)), "label": np.zeros((2, 3, 3))} | changed
        with h5py.File(root / "test_vol_h5/case0008.npy.h5", "w") as file:
            for name, array in content.items():
                if array is not None:
                    file[name] = array

    return edit


def bytes_of(name, content):
    return lambda root: (root / name).write_bytes(content)


def flipped(root):
    path = root / "train_npz/case0005_slice2.npz"
    data = bytearray(path.read_bytes())
    data[data.index(b"\x93NUMPY") + 130] ^= 1
    path.write_bytes(data)


def copied(old, new):
    return lambda root: (root / new).write_bytes((root / old).read_bytes())


SLICE, SCAN = "case0005_slice2.npz: ", "case0008.npy.h5: "
BAD = np.full((3, 3), np.nan)
NPZ, H5 = "train_npz/case0005_slice2.npz", "test_vol_h5/case0008.npy.h5"
PACKAGE_FAULTS = {
    "no label": (arrays(label=None), SLICE + "not an NPZ file of image and label ("),
    "no image": (arrays(image=None), SLICE + "not an NPZ file of image and label ("),
    "pickled array": (
        lambda root: arrays(image=np.array([Evil()], object))(root),
        SLICE + "not an NPZ file of image and label (Object arrays cannot be loaded",
    ),
    "pickle for a slice": (bytes_of(NPZ, pickle.dumps([1])), SLICE + "not an NPZ file"),
    "empty slice": (bytes_of(NPZ, b""), SLICE + "not an NPZ file"),
    "broken zip": (bytes_of(NPZ, b"PK\x03\x04 and so on"), SLICE + "not an NPZ file"),
    "flipped bit": (flipped, SLICE + "not an NPZ file of image and label (Bad CRC-32"),
    "bare array": (
        lambda root: np.save((root / NPZ).open("wb"), np.zeros((3, 3))),
        SLICE + "not an NPZ file",
    ),
    "NaN": (arrays(image=BAD), SLICE + "intensities from nan to nan, not 0 to 1"),
    "Hounsfield units": (arrays(image=np.full((3, 3), -5.0)),
                         SLICE + "intensities from -5 to -5"),
    "labels not whole": (
        arrays(label=np.full((3, 3), 0.5)), SLICE + "labels that are no whole numbers, such as 0.5 "
    ),
    "label NaN": (arrays(label=BAD), SLICE + "labels that are no whole numbers, such as nan "),
    "label out of range": (arrays(label=np.full((3, 3), 9)), SLICE + "unknown labels 9 (known"),
    "text for numbers": (arrays(label=np.full((3, 3), "a")), SLICE + "arrays of float64 and <U1"),
    "volume for a slice": (
        arrays(image=np.zeros((1, 3, 3)), label=np.zeros((1, 3, 3))),
        "not two alike of 2 dimensions",
    ),
    "label of another size": (
        arrays(label=np.zeros((3, 4))),
        SLICE + "an image of 3x3 and a label of 3x4 voxels",
    ),
    "slices of two sizes": (
        arrays(image=np.zeros((4, 4)), label=np.zeros((4, 4))),
        "case0005_slice10.npz: 3x3 pixels, unlike the case's first slice (4x4)",
    ),
    "slice twice": (
        copied(NPZ, "train_npz/case0005_slice002.npz"),
        "slice 2 of case0005 is case0005_slice002.npz, too",
    ),
    "other name": (copied(NPZ, "train_npz/case5.npz"), "case5.npz: not a name of this data set"),
    "case in both parts": (
        copied(H5, "test_vol_h5/case0005.npy.h5"), "case0005.npy.h5: case0005 is in train_npz, too",
    ),
    "text for a scan": (bytes_of(H5, b"hello"), SCAN + "not an HDF5 file"),
    "truncated scan": (
        lambda root: (root / H5).write_bytes((root / H5).read_bytes()[:-100]),
        SCAN + "not an HDF5 file",
    ),
    "scan without label": (volume_of(label=None), SCAN + "not an HDF5 file of image and label ("),
    "slice for a scan": (
        volume_of(image=np.zeros((3, 3)), label=np.zeros((3, 3))), "not two alike of 3 dimensions",
    ),
    "scan with NaN": (volume_of(image=np.full((2, 3, 3), np.nan)), SCAN + "intensities from nan"),
    "scan with label 9": (volume_of(label=np.full((2, 3, 3), 9)), SCAN + "unknown labels 9 "),
    "no test cases": (lambda root: (root / H5).unlink(), "test_vol_h5: no cases found"),
    "download there, too": (lambda root: (root / "img").mkdir(), "holds the download and the"),
}  # fmt: skip


def test_faults_of_the_package_are_named(tmp_path):
    def attempt(folder, edit):
        package(folder)
        edit(folder)
        reads(Synapse(folder))

    check_all(PACKAGE_FAULTS, attempt, tmp_path)


def test_thirteen_organs_need_the_download(tmp_path):
    with pytest.raises(DataError, match="has 8 organs, not 13"):
        Synapse(package(tmp_path), organs=13).cases()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (None, "no such folder"),
        ([], "no Synapse data"),
        (["train_npz"], "test_vol_h5: not found"),
        (["img"], "label: not found"),
        (["img", "label"], "no cases found"),
    ],
)
def test_a_folder_that_is_not_the_dataset(tmp_path, folders, message):
    root = tmp_path / "root"
    for name in folders or []:
        (root / name).mkdir(parents=True)
    if folders == []:
        root.mkdir()
    with pytest.raises(DataError, match=message):
        Synapse(root).cases()


@pytest.mark.parametrize("options", [{"organs": 9}, {"order": "swin"}, {"window": (275, -125)}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError):
        Synapse(".", **options)


def test_the_published_split_has_18_and_12_cases():
    text = files("attnseg.data.published").joinpath("synapse_18_12.csv").read_text()
    rows = list(csv.reader(text.splitlines()))
    assert rows[0] == ["patient", "case", "role", "digest"]
    assert all(patient == case and not digest for patient, case, _, digest in rows[1:])
    lists = {
        role: [int(case.removeprefix("case")) for _, case, r, _ in rows[1:] if r == role]
        for role in ("train", "test")
    }
    # As in https://github.com/Beckschen/TransUNet, lists/lists_Synapse.
    assert lists == {
        "train": [5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40],
        "test": [8, 22, 38, 36, 32, 2, 29, 3, 1, 4, 25, 35],
    }
    assert (len(lists["train"]), len(lists["test"])) == (18, 12)
    assert sorted(lists["train"] + lists["test"]) == [*range(1, 11), *range(21, 41)]
