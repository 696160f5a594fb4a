"""Datasets are written by hand here, a few voxels each."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from attnseg.data.reader import check_case
from attnseg.data.readers.nnunet import NNUNet
from attnseg.errors import DataError
from tests.data.refusals import check, check_all

# Feet up, front to back, right to left, as the reader returns it.
SCAN = np.arange(24, dtype=np.int16).reshape(2, 3, 4) * 50 - 300
LABELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 4
PLAIN = {"background": 0, "edema": 1, "necrosis": 2, "enhancing": 3}
PICTURE = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOURS = np.stack([PICTURE, PICTURE + 1, PICTURE + 2], -1)


class Dataset:
    """One in nnU-Net's format: what goes into dataset.json, and a way to write files."""

    def __init__(self, root, ending=".nii.gz", channels=("CT",), labels=None, **more):
        self.root, self.ending = root, ending
        self.content = {
            "channel_names": {str(n): name for n, name in enumerate(channels)},
            "labels": labels or PLAIN,
            "numTraining": 1,
            "file_ending": ending,
        } | more

    def write(self, name, array, moved=0.0):
        path = self.root / f"{name}{self.ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.ending.startswith((".nii", ".hdr")):
            affine = np.diag([-0.5, -0.75, 4.0, 1.0])  # x to the left, y to the back
            affine[0, 3] = moved
            kind = nib.Nifti1Pair if self.ending.startswith(".hdr") else nib.Nifti1Image
            image = kind(array.transpose(2, 1, 0), affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, path)
        else:
            Image.fromarray(array).save(path)
        return self

    def case(self, name="a", channels=(SCAN,), labels=LABELS, part="Tr"):
        for number, channel in enumerate(channels):
            self.write(f"images{part}/{name}_{number:04d}", channel)
        return self.write(f"labels{part}/{name}", labels)

    def reader(self, **options):
        self.root.mkdir(exist_ok=True)
        (self.root / "dataset.json").write_text(json.dumps(self.content), "utf-8")
        return NNUNet(self.root, **options)

    def read(self, **options):
        reader = self.reader(**options)
        ref = reader.cases()[0]
        case = reader.read(ref)
        check_case(case, ref, reader)
        return case


def test_a_scan_reads_voxel_by_voxel(tmp_path):
    data = Dataset(tmp_path / "my späce").case("Fälle 1")
    case = data.read(window=(-100, 200))
    assert np.array_equal(case.image, SCAN[..., None])
    assert case.image.dtype == np.int16
    assert np.array_equal(case.mask, LABELS)
    assert case.spacing == pytest.approx((4, 0.75, 0.5))
    assert np.allclose(np.diag(case.affine), (-0.5, -0.75, 4, 1))
    assert case.window == (-100, 200)
    assert data.read().window is None
    reader = data.reader()
    assert (reader.classes, reader.labels.overlapping, reader.channels, reader.volumetric) == (
        ("edema", "necrosis", "enhancing"), False, 1, True,
    )  # fmt: skip
    (ref,) = reader.cases()
    assert (ref.case, ref.patient, ref.role) == ("Fälle 1", "Fälle 1", None)


def test_another_plane(tmp_path):
    case = Dataset(tmp_path, ".nii").case().read(plane="sagittal")
    assert np.array_equal(case.mask, LABELS.transpose(2, 0, 1))
    assert np.array_equal(case.image[..., 0], SCAN.transpose(2, 0, 1))
    assert case.spacing == pytest.approx((0.5, 4, 0.75))


def test_labels_become_indices_in_the_order_of_their_values(tmp_path):
    labels = {"third": 300, "background": 0, "second": 7, "first": 3}
    written = np.array([0, 3, 7, 300], np.uint16)[LABELS]
    data = Dataset(tmp_path, labels=labels).case(labels=written)
    assert data.reader().classes == ("first", "second", "third")
    assert np.array_equal(data.read().mask, LABELS)


def test_regions_become_bits_in_the_order_written(tmp_path):
    labels = {"background": 0, "core": [2, 3], "whole": [1, 2, 3], "enhancing": 3}
    data = Dataset(tmp_path, labels=labels, regions_class_order=[1, 2, 3]).case()
    reader = data.reader()
    assert (reader.classes, reader.labels.overlapping) == (("core", "whole", "enhancing"), True)
    expected = np.array([0, 0b010, 0b011, 0b111], np.uint8)  # of labels 0 to 3
    assert np.array_equal(data.read().mask, expected[LABELS])


def test_what_labels_mean_is_part_of_the_source(tmp_path):
    data = Dataset(tmp_path).case()
    ref = data.reader().cases()[0]
    before = data.reader().source(ref)
    assert data.reader().source(ref) == before
    for enhancing in (5, [3]):  # another label; the same as a region, which is a bit
        data.content["labels"] = PLAIN | {"enhancing": enhancing}
        assert data.reader().source(ref) != before


@pytest.mark.parametrize(
    ("second", "dtype"),
    [(SCAN + 300, np.float32), (SCAN - 1, np.int16), (SCAN + np.float32(0.5), np.float32)],
    ids=["unsigned", "signed", "float"],
)
def test_channels_are_stacked_in_a_type_for_all(tmp_path, second, dtype):
    data = Dataset(tmp_path, channels=("T1", "T2")).case(channels=(SCAN, second))
    case = data.read()
    assert case.image.dtype == dtype
    assert np.array_equal(case.image, np.stack([SCAN, second], -1))


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_grey_pictures(tmp_path, ending):
    case = Dataset(tmp_path, ending).case(channels=(PICTURE,), labels=LABELS[0]).read()
    assert np.array_equal(case.image, PICTURE[None, ..., None])
    assert case.image.dtype == np.uint8
    assert np.array_equal(case.mask, LABELS[:1])
    assert (case.spacing, case.affine, case.window) == (None, None, None)


def test_16_and_8_bit_channels_and_16_bit_labels(tmp_path):
    deep = PICTURE.astype(np.uint16) * 300
    data = Dataset(tmp_path, ".png", ("a", "b")).case(
        channels=(PICTURE, deep), labels=LABELS[0].astype(np.uint16)
    )
    case = data.read()
    assert case.image.dtype == np.uint16
    assert np.array_equal(case.image, np.stack([PICTURE, deep], -1)[None])
    assert np.array_equal(case.mask, LABELS[:1])


def test_one_colour_picture_supplies_three_channels(tmp_path):
    data = Dataset(tmp_path, ".png", "RGB").case(channels=(COLOURS,), labels=LABELS[0])
    case = data.read()
    assert np.array_equal(case.image, COLOURS[None])
    assert case.window == (0, 255)
    assert data.read(window=(10, 20)).window == (10, 20)
    reader = data.reader()
    assert (reader.channels, reader.volumetric) == (3, False)


def test_three_grey_pictures_are_three_channels(tmp_path):
    channels = tuple(COLOURS.transpose(2, 0, 1))
    case = Dataset(tmp_path, ".png", "RGB").case(channels=channels, labels=LABELS[0]).read()
    assert np.array_equal(case.image, COLOURS[None])
    assert case.window is None


def test_cases_with_test_labels_are_for_testing(tmp_path):
    data = Dataset(tmp_path).case("b").case("a").write("imagesTs/c_0000", SCAN)
    assert [(r.case, r.role) for r in data.reader().cases()] == [("a", None), ("b", None)]
    data.write("labelsTs/c", LABELS)
    assert [(r.case, r.role) for r in data.reader().cases()] == [
        ("a", None), ("b", None), ("c", "test"),
    ]  # fmt: skip


def test_listed_files_may_lie_anywhere_within_the_root(tmp_path):
    data = Dataset(tmp_path, channels=("T1", "T2"))
    data.write("x/one", SCAN).write("y/two", SCAN - 1).write("z/mask", LABELS)
    files = {"images": ["x/one.nii.gz", "./y/../y/two.nii.gz"], "label": "z/mask.nii.gz"}
    data.content["dataset"] = {"case 1": files}
    assert np.array_equal(data.read().image, np.stack([SCAN, SCAN - 1], -1))
    assert [ref.case for ref in data.reader().cases()] == ["case 1"]


def test_patients_come_from_the_names(tmp_path):
    data = Dataset(tmp_path).case("p10_frame1").case("p10_frame2").case("p1_frame1")
    refs = data.reader(patient=r"(p\d+)_frame\d").cases()
    assert [(r.case, r.patient) for r in refs] == [
        ("p10_frame1", "p10"), ("p10_frame2", "p10"), ("p1_frame1", "p1"),
    ]  # fmt: skip
    with pytest.raises(DataError) as error:
        data.reader(patient=r"(p\d)(?:_frame1)?").cases()  # would take p10 for p1
    assert [problem.split("'")[1] for problem in error.value.problems] == [
        "p10_frame1", "p10_frame2",
    ]  # fmt: skip


def test_all_files_missing_or_too_many_are_named_at_once(tmp_path):
    data = Dataset(tmp_path, channels=("T1", "T2")).case("a", (SCAN, SCAN)).case("b")
    data.case("c", (SCAN, SCAN, SCAN)).case("d", (SCAN, SCAN)).write("imagesTr/oops", SCAN)
    data.write("labelsTr/e", LABELS)
    (tmp_path / "labelsTr" / "d.nii.gz").unlink()
    (tmp_path / "imagesTr" / "._a_0000.nii.gz").touch()  # as macOS leaves them
    (tmp_path / "imagesTr" / "notes.txt").touch()
    with pytest.raises(DataError) as error:
        data.reader().cases()
    assert [p.removeprefix(f"{tmp_path}/").split(";")[0] for p in error.value.problems] == [
        "imagesTr/oops.nii.gz: not named <case>_<channel>.nii.gz with a channel of four digits",
        f"labelsTr/e.nii.gz: no image in {tmp_path}/imagesTr",
        "imagesTr/b_0001.nii.gz: not found",
        "imagesTr/c_0002.nii.gz: dataset.json names 2 channels, counted from 0000",
        "labelsTr/d.nii.gz: not found",
    ]


def described(**changed):
    def edit(data):
        data.content |= changed
        data.content = {key: value for key, value in data.content.items() if value is not None}

    return edit


def labelled(**labels):
    return described(labels={"background": 0} | labels)


def listed(case="a", images=("imagesTr/a_0000.nii.gz",), label="labelsTr/a.nii.gz"):
    return described(dataset={case: {"images": list(images), "label": label}})


DESCRIPTION_FAULTS = {
    "version 1, modality": (described(modality={"0": "CT"}), "version 1 of nnU-Net; convert it"),
    "version 1, labels": (described(labels={"0": "background", "1": "a"}), "version 1 of nnU-Net"),
    "no channels": (described(channel_names=None), "channel_names is missing or no object"),
    "channels listed": (described(channel_names=["CT"]), "channel_names is missing or no object"),
    "channel skipped": (described(channel_names={"1": "CT"}), "channel_names has keys '1', not 0"),
    "channels empty": (described(channel_names={}), "channel_names has keys ''"),
    "no labels": (described(labels=None), "labels is missing"),
    "no ending": (described(file_ending=None), "file_ending is missing or no text"),
    "other ending": (
        described(file_ending=".mha"), ".mha' is not supported; convert the files to one of .nii.gz"
    ),
    "label not whole": (labelled(a=1.5), "label 'a' is 1.5, not a whole number"),
    "label true": (labelled(a=True), "label 'a' is true, not a whole number"),
    "label negative": (labelled(a=-1), "label 'a' is -1, not"),
    "region empty": (labelled(a=[]), "label 'a' is [], not"),
    "region of text": (labelled(a=["1"]), "label 'a' is [\"1\"], not"),
    "label without a name": (labelled(**{" ": 1}), "label ' ' is 1: empty, or letters that"),
    "label of two lines": (labelled(**{"a\nb": 1}), "letters that cannot be printed; rename it"),
    "label of half a letter": (labelled(**{"\ud800": 1}), "letters that cannot be printed"),
    "label twice": (labelled(a=1, b=1), "label 'b' is 1, a value that comes twice"),
    "region twice": (labelled(a=[1, 2], b=[2, 1]), "label 'b' is [2, 1], a value that"),
    "class of 0": (described(labels={"a": 0, "b": 1}), "label 'a' is 0; background, and it"),
    "region with 0": (labelled(a=[0, 1]), "label 'a' is [0, 1]; background, and it"),
    "background 1": (described(labels={"background": 1}), "label 'background' is 1; backgr"),
    "background only": (labelled(), "0 labels beside the background; from 1 to 255"),
    "nine regions": (
        labelled(**{f"r{n}": [n, n + 1] for n in range(1, 10)}), "9 regions beside the background"
    ),
    "ignore": (labelled(a=1, ignore=[2, 3]), "label 'ignore' is not one value of its own"),
    "ignore in a region": (labelled(a=[1, 2], ignore=2), "label 'ignore' is not one value"),
    "dataset listed": (described(dataset=["a"]), "dataset is no object of cases"),
    "no label": (listed(label=None), "case 'a' is not written"),
    "images as text": (described(dataset={"a": {"images": "x", "label": "y"}}), "is not written"),
    "entry as text": (described(dataset={"a": "x"}), "case 'a' is not written"),
    "too many images": (listed(images=["a.nii.gz"] * 2), "lists 2 images for 1 channels"),
    "other file ending": (listed(label="a.nii"), "'a.nii' is no file name that ends with .nii.gz"),
    "NUL": (listed(label="a\0.nii.gz"), "is no file name that ends with"),
    "file not there": (listed(label="b.nii.gz"), "b.nii.gz: not found"),
    "out of the root": (listed(label="../outside.nii.gz"), "outside.nii.gz: lies outside of"),
    "case with a path": (listed("../a"), "case '../a' is no name for a file"),
    "empty case": (listed(""), "case '' is no name for a file"),
    "no cases": (described(dataset={}), "no cases found; expected imagesTr/<case>_0000.nii.gz"),
    "no cases of this ending": (described(file_ending=".nii"), "no cases found"),
}  # fmt: skip


def test_faults_of_the_description_are_named(tmp_path):
    def attempt(folder, edit):
        data = Dataset(folder / "root").case().write("../outside", LABELS)
        edit(data)
        data.reader().cases()

    check_all(DESCRIPTION_FAULTS, attempt, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not a readable JSON file"),
        (b"\xff\xfe", "not a readable JSON file"),
        (b"[" * 100_000, "not a readable JSON file"),
        (b"[]", "not an object of keys and values"),
        (b'{"labels": {"a": 1, "a": 2}}', "not a readable JSON file (key 'a' appears twice)"),
        (None, "dataset.json: not found"),
    ],
)
def test_a_description_that_is_none(tmp_path, text, message):
    if text is not None:
        (tmp_path / "dataset.json").write_bytes(text)
    reader = NNUNet(tmp_path)  # reads nothing
    for ask in (reader.cases, lambda: reader.classes, lambda: reader.labels.overlapping):
        with pytest.raises(DataError) as error:
            ask()
        check(str(error.value), message, tmp_path)


def linked(data):
    path = data.root / "labelsTr" / "a.nii.gz"
    path.rename(data.root.parent / "outside.nii.gz")
    path.symlink_to(data.root.parent / "outside.nii.gz")


def looped(data):
    path = data.root / "labelsTr" / "a.nii.gz"
    path.unlink()
    path.symlink_to(path)


SCAN_FAULTS = {
    "unknown label": (
        lambda d: d.case(labels=LABELS + 1), "a.nii.gz: unknown labels 4 (known are 0, 1, 2, 3)"
    ),
    "labels not whole": (
        lambda d: d.case(labels=LABELS / np.float32(2)), "no whole numbers, such as 0.5, 1.5",
    ),
    "cropped label": (
        lambda d: d.case(labels=LABELS[:1]), "4x3x1 voxels, but a_0000.nii.gz has 4x3x2"
    ),
    "moved label": (
        lambda d: d.write("labelsTr/a", LABELS, moved=3), "a.nii.gz: lies up to 3 mm away"
    ),
    "moved channel": (
        lambda d: d.write("imagesTr/a_0001", SCAN, moved=3), "a_0001.nii.gz: lies up to 3 mm away"
    ),
    "text": (
        lambda d: (d.root / "imagesTr" / "a_0001.nii.gz").write_text("x"),
        "a_0001.nii.gz: not a readable NIfTI file",
    ),
    "link out of the root": (linked, "a.nii.gz: lies outside of"),
    "link to itself": (looped, "a.nii.gz: not found"),
    "in training and test": (
        lambda d: d.case(channels=(SCAN, SCAN), part="Ts"), "a is for training, too"
    ),
    "no images for testing": (
        lambda d: d.write("labelsTs/b", LABELS), "imagesTs: not found; restore the folder"
    ),
}  # fmt: skip


def test_faults_of_a_scan_are_named(tmp_path):
    def attempt(folder, edit):
        data = Dataset(folder / "root", channels=("T1", "T2")).case(channels=(SCAN, SCAN))
        edit(data)
        data.read()

    check_all(SCAN_FAULTS, attempt, tmp_path)


PICTURE_FAULTS = {
    "unknown label": (".png", PICTURE, LABELS[0] + 1, "a.png: unknown labels 4 (known"),
    "colour for one channel": (".png", COLOURS, LABELS[0], "pixels of type RGB, not 8-bit grey"),
    "colour label": (".png", PICTURE, COLOURS, "a.png: pixels of type RGB"),
    "label of another size": (".png", PICTURE, LABELS[0].T, "4x3 pixels, but a_0000.png has 3x4"),
    "32-bit": (".tif", PICTURE.astype(np.int32), LABELS[0], "pixels of type I, not"),
    "float": (".tif", PICTURE.astype(np.float32), LABELS[0], "pixels of type F, not"),
}


def test_faults_of_a_picture_are_named(tmp_path):
    def attempt(folder, ending, picture, labels):
        Dataset(folder, ending).case(channels=(picture,), labels=labels).read()

    check_all(PICTURE_FAULTS, attempt, tmp_path)


def test_a_grey_picture_is_not_three_channels(tmp_path):
    data = Dataset(tmp_path, ".png", "RGB").case(channels=(PICTURE,), labels=LABELS[0])
    with pytest.raises(DataError, match="pixels of type L, not colour"):
        data.read()


def test_a_tiff_of_several_pages_is_refused(tmp_path):
    data = Dataset(tmp_path, ".tif").case(channels=(PICTURE,), labels=LABELS[0])
    page = Image.fromarray(PICTURE)
    page.save(tmp_path / "imagesTr/a_0000.tif", save_all=True, append_images=[page])
    with pytest.raises(DataError, match="2 pictures in one file"):
        data.read()


@pytest.mark.parametrize(
    "options",
    [
        {"plane": "oblique"},
        {"window": (1, 1)},
        {"patient": "("},
        {"patient": "a"},
        {"patient": "(a)(b)"},
    ],
)
def test_options_that_cannot_be(options):
    with pytest.raises(ValueError):
        NNUNet(".", **options)
