"""Masks that are wrong, and classes that are nowhere; more beside each reader's own tests."""

import json

import numpy as np
import pytest
from PIL import Image

from attnseg.data.labels import Labels
from attnseg.data.reader import Case, CaseRef, check_case
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.errors import DataError
from tests.data.test_isic2018 import IMAGES, LESION, MASKS, PHOTO, download
from tests.data.test_isic2018 import read as read_isic
from tests.data.test_nnunet import LABELS, SCAN, Dataset
from tests.data.uw_tree import CLASSES, Tree

KEY = ("case2_day1_slice_0001", "stomach")
CELLS = {
    "-1": "1 numbers in the run-length code, which needs pairs",
    "0 3": "run 0 3 is empty, overlaps or is out of order",
    "-2 3": "'-2' in the run-length code is not a whole number",
    "1e1 3": "'1e1' in the run-length code is not a whole number",
    "3 0": "run 3 0 is empty",
    "5 2 1 2": "run 1 2 is empty, overlaps or is out of order",
    "1 3 2 3": "run 2 3 is empty, overlaps or is out of order",
    "1 1000000000000000000": "is not a whole number",
    "9999999999 1": "ends beyond the 20 pixels",
    "None": "1 numbers in the run-length code",
}


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_that_is_no_mask(tmp_path, cell):
    tree = Tree(tmp_path)
    tree.rows[KEY] = cell
    reader = UWMadison(tree.write())
    with pytest.raises(DataError) as error:
        reader.read(reader.cases()[0])
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/train.csv: case2_day1_slice_0001, stomach: ")
    assert CELLS[cell] in text
    assert text.endswith("; correct the row or exclude the scan")


@pytest.mark.parametrize("cell", ["", "NaN", "nan", " ", '""'])
def test_a_cell_that_is_an_empty_mask(tmp_path, cell):
    tree = Tree(tmp_path)
    tree.rows[KEY] = cell
    reader = UWMadison(tree.write())
    assert not reader.read(reader.cases()[0]).mask.any()


def test_overlapping_classes_stay_channels(tmp_path):
    tree = Tree(tmp_path)
    tree.rows[KEY] = "1 4"
    tree.rows[KEY[0], "large_bowel"] = "3 4"
    reader = UWMadison(tree.write())
    assert reader.read(reader.cases()[0]).mask[0, 0].tolist() == [4, 4, 5, 5, 1]


def isic_mask(content):
    def edit(root):
        path = root / MASKS / "ISIC_0000001_segmentation.png"
        content(path)

    return edit


def jpeg_by_name(path):
    path.unlink()
    Image.fromarray(LESION * 255).save(path.with_suffix(".jpg"))


MASK_FAULTS = {
    "JPEG named PNG": (
        isic_mask(lambda p: Image.fromarray(LESION * 255).save(p, "JPEG")),
        "compressed as JPEG, which alters the values of a mask",
    ),
    "JPEG": (isic_mask(jpeg_by_name), "no ISIC_0000001_segmentation.png in"),
    "grey with alpha": (
        isic_mask(lambda p: Image.fromarray(LESION * 255).convert("LA").save(p)), "of type LA",
    ),
    "text": (isic_mask(lambda p: p.write_text("hello")), "not a PNG image"),
    "empty": (isic_mask(lambda p: p.write_bytes(b"")), "not a PNG image"),
    "turned": (isic_mask(lambda p: Image.fromarray(LESION.T * 255).save(p)), "4x3 pixels, but"),
    "0, 1 and 255": (
        isic_mask(lambda p: Image.fromarray(np.array([[0, 1, 255, 0]] * 3, np.uint8)).save(p)),
        "grey values 1 in a mask of 0 and 255",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", MASK_FAULTS)
def test_a_picture_that_is_no_mask(tmp_path, fault):
    edit, message = MASK_FAULTS[fault]
    edit(download(tmp_path))
    with pytest.raises(DataError) as error:
        read_isic(tmp_path)
    text = str(error.value)
    assert message in text
    assert text.startswith(str(tmp_path))
    assert "\n" not in text
    assert "; " in text


@pytest.mark.parametrize(
    "mask",
    [LESION, LESION * 255, LESION.astype(bool)],
    ids=["0 and 1", "0 and 255", "bool"],
)
def test_every_way_to_write_a_binary_mask_is_the_same_mask(tmp_path, mask):
    download(tmp_path)
    Image.fromarray(mask).save(tmp_path / MASKS / "ISIC_0000001_segmentation.png")
    assert np.array_equal(read_isic(tmp_path).mask[0], LESION)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_whole_labels_of_any_type_are_the_same_mask(tmp_path, dtype):
    case = Dataset(tmp_path).case(labels=LABELS.astype(dtype)).read()
    assert np.array_equal(case.mask, LABELS)


class OneClass:
    labels, channels = Labels(("organ",)), 1


def checked(mask, overlapping=False):
    reader = OneClass()
    reader.labels = Labels(("organ",), overlapping)
    image = np.zeros((*np.shape(mask), 1), np.uint8)
    check_case(Case(image, mask, None), CaseRef("p", "c", ()), reader)


def test_values_beyond_the_classes_are_refused_whatever_the_reader():
    checked(np.ones((1, 4, 4), np.uint8))
    for overlapping in (False, True):
        with pytest.raises(DataError, match="the mask holds 2, but there are 1 classes"):
            checked(np.full((1, 4, 4), 2, np.uint8), overlapping)


def test_a_mask_of_another_shape_is_refused_whatever_the_reader():
    case = Case(np.zeros((1, 4, 4, 1), np.uint8), np.zeros((1, 4, 5), np.uint8), None)
    with pytest.raises(DataError, match="an image of 1x4x4 and a mask of 1x4x5 voxels"):
        check_case(case, CaseRef("p", "c", ()), OneClass())


def test_a_class_that_is_nowhere_is_warned_of_and_its_metrics_are_undefined(call, tmp_path):
    tree = Tree(tmp_path / "root", tuple(f"case{n}_day0" for n in range(1, 6)))
    rng = np.random.default_rng(3)
    tree.files = {name: rng.integers(0, 999, (4, 5)).astype(np.uint16) for name in tree.files}
    for name, organ in list(tree.rows):
        tree.rows[name, organ] = "" if organ == "stomach" else f"{CLASSES.index(organ) + 1} 4"
    answer = call(
        "experiment=smoke", "dataset=uw_madison", f"dataset.root={tree.write()}",
        "trainer.max_epochs=0", "dataset.limit_cases=null", "dataset.exclude=[]",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    for role in ("train", "val", "test"):
        assert f"warning: No stomach in the {role} split: its metrics are undefined" in answer.out
    (path,) = tmp_path.glob("outputs/*/*/*/*/metrics.json")
    found = json.loads(path.read_text())["test"]
    assert found["classes"]["large_bowel"]["dice"] is not None
    assert "NaN" not in path.read_text()


def test_an_unlabelled_scan_is_named_when_a_class_has_a_value_of_its_own(tmp_path):
    data = Dataset(tmp_path).case(channels=(SCAN,), labels=np.full_like(LABELS, 255))
    with pytest.raises(DataError, match=r"a\.nii\.gz: unknown labels 255 \(known are 0, 1, 2, 3\)"):
        data.read()


def test_a_photo_in_place_of_its_mask(tmp_path):
    download(tmp_path)
    Image.fromarray(PHOTO).save(tmp_path / MASKS / "ISIC_0000001_segmentation.png")
    with pytest.raises(DataError, match="pixels of type RGB, not 8-bit grey or 1-bit"):
        read_isic(tmp_path)
    assert (tmp_path / IMAGES).is_dir()
