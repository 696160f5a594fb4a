"""The download is written by hand here, a few pixels each."""

import logging

import numpy as np
import pytest
from PIL import Image

from attnseg.data.readers.isic2018 import ISIC2018
from attnseg.errors import DataError
from tests.data.refusals import check_all

PHOTO = np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7
LESION = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]], np.uint8)
INPUT = "ISIC2018_Task1-2_{}_Input"
TRUTH = "ISIC2018_Task1_{}_GroundTruth"
IMAGES, MASKS = INPUT.format("Training"), TRUTH.format("Training")


@pytest.fixture(autouse=True)
def _logs(caplog):
    logging.getLogger("attnseg").propagate = True
    caplog.set_level(logging.INFO, "attnseg")


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def download(root, names=("ISIC_0000001",), part="Training"):
    for name in names:
        save(root / INPUT.format(part) / f"{name}.png", PHOTO)
        save(root / TRUTH.format(part) / f"{name}_segmentation.png", LESION * 255)
    return root


def read(root, **options):
    reader = ISIC2018(root, **options)
    return reader.read(reader.cases()[0])


def test_pixels_and_mask_are_what_was_written(tmp_path):
    case = read(download(tmp_path / "my späce"))
    assert case.image.dtype == case.mask.dtype == np.uint8
    assert np.array_equal(case.image, PHOTO[None])
    assert np.array_equal(case.mask, LESION[None])
    assert (case.spacing, case.affine, case.window) == (None, None, (0, 255))


@pytest.mark.parametrize("suffix", ["jpg", "JPG", "jpeg"])
def test_jpeg_photographs_and_both_spellings_of_masks(tmp_path, suffix):
    save(tmp_path / IMAGES / f"ISIC_1.{suffix}", np.full((16, 24, 3), 90, np.uint8), format="JPEG")
    save(tmp_path / MASKS / "ISIC_1_Segmentation.png", np.zeros((16, 24), np.uint8))
    (tmp_path / IMAGES / "LICENSE.txt").touch()
    (tmp_path / IMAGES / "ISIC_1_superpixels.png").touch()
    (tmp_path / IMAGES / "._ISIC_1.jpg").touch()  # as macOS leaves them
    (tmp_path / MASKS / "ATTRIBUTION.txt").touch()
    case = read(tmp_path)
    assert np.array_equal(case.image, np.full((1, 16, 24, 3), 90))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (LESION, LESION),
        (Image.fromarray(LESION * 255).convert("1"), LESION),
        (LESION * 0, LESION * 0),
        (LESION * 0 + 1, LESION * 0 + 1),
        (LESION * 0 + 255, LESION * 0 + 1),
    ],
    ids=["0 and 1", "1-bit", "empty", "all 1", "all 255"],
)
def test_other_ways_to_write_a_mask(tmp_path, caplog, pixels, expected):
    download(tmp_path)
    save(tmp_path / MASKS / "ISIC_0000001_segmentation.png", pixels)
    assert np.array_equal(read(tmp_path).mask[0], expected)
    assert ("ISIC_0000001_segmentation.png: an empty mask" in caplog.text) == (not expected.any())


def test_roles_are_those_of_the_folders(tmp_path, caplog):
    download(tmp_path, ("b", "a"))
    assert [(r.case, r.patient, r.role) for r in ISIC2018(tmp_path).cases()] == [
        ("a", "a", None), ("b", "b", None),
    ]  # fmt: skip
    download(tmp_path, ("c",), "Test")
    save(tmp_path / INPUT.format("Validation") / "d.png", PHOTO)  # no ground truth
    caplog.clear()
    assert [(r.case, r.role) for r in ISIC2018(tmp_path).cases()] == [
        ("a", "train"), ("b", "train"), ("c", "test"),
    ]  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / TRUTH.format('Validation')}: not there, so the Validation images are left out"
    ]
    download(tmp_path, ("d",), "Validation")
    assert [r.role for r in ISIC2018(tmp_path).cases()] == ["train", "train", "val", "test"]


def test_a_long_photograph_is_shrunk_with_its_mask(tmp_path):
    image = np.zeros((4, 8, 3), np.uint8)
    image[:2, 2:4] = [[[8, 0, 0], [16, 0, 0]], [[24, 0, 0], [32, 0, 0]]]
    mask = np.zeros((4, 8), np.uint8)
    mask[:2, 2:4] = 255
    save(tmp_path / IMAGES / "a.png", image)
    save(tmp_path / MASKS / "a_segmentation.png", mask)
    case = read(tmp_path, max_side=4)
    assert case.image[0, :, :, 0].tolist() == [[0, 20, 0, 0], [0, 0, 0, 0]]  # the mean of four
    assert case.mask[0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert read(tmp_path, max_side=8).image.shape == (1, 4, 8, 3)


def test_groups_are_patients(tmp_path):
    download(tmp_path, ("007", "7", "1e5", "NA", "free"))
    table = tmp_path / "groups.csv"
    table.write_bytes(
        b'\xef\xbb\xbfgroup,age,image\r\n"a, b",50,007\r\n"a, b",1,1e5\r\n\r\n07,2,7\r\nNA,3,NA\r\n'
    )
    reader = ISIC2018(tmp_path, groups="groups.csv")
    patients = {ref.case: ref.patient for ref in reader.cases()}
    assert patients == {"007": "a, b", "1e5": "a, b", "7": "07", "NA": "NA", "free": "free"}
    before = {ref.case: reader.source(ref) for ref in reader.cases()}
    table.write_text("image,group\n007,c\n")
    reader = ISIC2018(tmp_path, groups=str(table))
    changed = {ref.case for ref in reader.cases() if reader.source(ref) != before[ref.case]}
    assert changed == {"007", "7", "1e5"}


@pytest.mark.parametrize("end", ["\r\n", "\r\n\r\n", "\n\n", "\n,\n", "\n \n\n", ""])
def test_blank_last_lines_of_the_groups_are_skipped(tmp_path, end):
    download(tmp_path, ("007", "7"))
    (tmp_path / "groups.csv").write_bytes(f"image,group\n007,a\n\n7,a{end}".encode())
    refs = ISIC2018(tmp_path, groups="groups.csv").cases()
    assert {ref.case: ref.patient for ref in refs} == {"007": "a", "7": "a"}


GROUP_FAULTS = {
    "column missing": (b"image,patient\n", "columns 'image,patient'; expected image,group"),
    "semicolons": (b"image;group\n", "columns 'image;group'"),
    "column twice": (b"image,group,group\n", "columns 'image,group,group'"),
    "empty": (b"", "columns ''"),
    "ragged": (b"image,group\nISIC_0000001\n", "row 2 has 1 cells instead of 2"),
    "no group": (b"image,group\nISIC_0000001,\n", "row 2: no group"),
    "equal rows": (b"image,group\nISIC_0000001,a\nISIC_0000001,a\n", "row 3: 'ISIC_0000001' app"),
    "contradictory rows": (b"image,group\nISIC_0000001,a\nISIC_0000001,b\n", "appears twice"),
    "unknown image": (b"image,group\nISIC_9,a\n", "1 images that are not there, 'ISIC_9' the"),
    "not text": (b"\xff\xfe\x00", "not a readable CSV file"),
    "missing": (None, "not a readable CSV file"),
}


def test_faults_in_the_groups_are_named(tmp_path):
    def attempt(folder, content):
        download(folder)
        if content is not None:
            (folder / "g.csv").write_bytes(content)
        ISIC2018(folder, groups="g.csv").cases()

    check_all(GROUP_FAULTS, attempt, tmp_path, lambda folder: folder / "g.csv")


def test_all_pairs_that_are_broken_are_named_at_once(tmp_path):
    download(tmp_path, ("a", "b", "c"))
    download(tmp_path, ("c",), "Test")
    (tmp_path / MASKS / "a_segmentation.png").unlink()
    (tmp_path / IMAGES / "b.png").unlink()
    save(tmp_path / IMAGES / "c.jpg", PHOTO)
    with pytest.raises(DataError) as error:
        ISIC2018(tmp_path).cases()
    assert [problem.removeprefix(f"{tmp_path}/") for problem in error.value.problems] == [
        f"{IMAGES}/c.png: c.jpg is there, too; keep one file",
        f"{IMAGES}/a.png: no a_segmentation.png in {MASKS}; restore the pair",
        f"{MASKS}/b_segmentation.png: no image b in {IMAGES}; restore the pair",
        f"{INPUT.format('Test')}/c.png: {tmp_path / IMAGES / 'c.png'} has this name, too; "
        "remove one",
    ]


def mask(pixels):
    return lambda root: save(root / MASKS / "ISIC_0000001_segmentation.png", pixels)


def photo(pixels, **options):
    return lambda root: save(root / IMAGES / "ISIC_0000001.png", pixels, **options)


def cut(folder, name):
    def edit(root):
        path = root / folder / name
        path.write_bytes(path.read_bytes()[:-30])

    return edit


def half_a_jpeg(root):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    path = root / IMAGES / "ISIC_0000001.jpg"
    save(path, noise)
    path.write_bytes(path.read_bytes()[:2000])
    path.with_suffix(".png").unlink()


GREY = Image.fromarray(LESION * 255)
FAULTS = {
    "three values": (mask(LESION * np.uint8(254) + np.uint8(1)), "grey values 1 in a mask of 0"),
    "soft edge": (mask(PHOTO[..., 0]), "grey values 21, 42, 63, 84, 105 in a mask of 0 and 255"),
    "one other value": (mask(LESION * 0 + 7), "grey values 7 in a mask"),
    "palette mask": (mask(GREY.convert("RGB").quantize(2)), "a palette whose index 0 is the grey"),
    "RGB mask": (mask(GREY.convert("RGB")), "pixels of type RGB"),
    "16-bit mask": (mask(LESION.astype(np.uint16)), "pixels of type I;16"),
    "mask of another size": (mask(LESION.T), "4x3 pixels, but ISIC_0000001.png has 3x4"),
    "truncated mask": (cut(MASKS, "ISIC_0000001_segmentation.png"), "_segmentation.png: "),
    "truncated photo": (cut(IMAGES, "ISIC_0000001.png"), "ISIC_0000001.png: "),
    "truncated JPEG": (half_a_jpeg, "ISIC_0000001.jpg: image file is truncated"),
    "text for a photo": (
        lambda root: (root / IMAGES / "ISIC_0000001.png").write_text("hello"), "not a PNG image",
    ),
    "grey photo": (photo(GREY), "pixels of type L, not colour"),
    "alpha": (photo(Image.fromarray(PHOTO).convert("RGBA")), "pixels of type RGBA, not colour"),
    "moving picture": (
        photo(Image.fromarray(PHOTO), save_all=True, append_images=[Image.fromarray(PHOTO + 1)]),
        "2 pictures in one file",
    ),
}  # fmt: skip


def test_faults_are_named_with_their_file(tmp_path):
    def attempt(folder, edit):
        download(folder)
        edit(folder)
        read(folder)

    check_all(FAULTS, attempt, tmp_path)


def test_photo_and_mask_that_are_both_broken_are_both_named(tmp_path):
    download(tmp_path)
    cut(MASKS, "ISIC_0000001_segmentation.png")(tmp_path)
    cut(IMAGES, "ISIC_0000001.png")(tmp_path)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (None, "no such folder"),
        ([], f"{IMAGES}: not found"),
        ([IMAGES], f"{MASKS}: not found"),
        ([IMAGES, MASKS], "no photographs found"),
    ],
)
def test_a_folder_that_is_not_the_download(tmp_path, folders, message):
    root = tmp_path / "root"
    for name in folders or []:
        (root / name).mkdir(parents=True)
    if folders == []:
        root.mkdir()
    with pytest.raises(DataError, match=message):
        ISIC2018(root).cases()


def test_a_longest_side_of_one_pixel_is_refused():
    with pytest.raises(ValueError, match="max_side is 1"):
        ISIC2018(".", max_side=1)
