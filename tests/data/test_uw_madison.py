import csv
import logging

import numpy as np
import pytest
from PIL import Image

from attnseg.data.readers.uw_madison import UWMadison
from attnseg.errors import DataError
from tests.data.refusals import check_all
from tests.data.uw_tree import CLASSES, Tree

FIRST = "case2_day1/scans/slice_0001_5_4_1.50_1.63.png"


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "download with späces")


def read(root):
    reader = UWMadison(root)
    return reader.read(reader.cases()[0])


def test_pixels_masks_and_spacing_are_what_was_written(tree):
    tree.rows["case2_day1_slice_0002", "stomach"] = "2 3 9 1"
    tree.rows["case2_day1_slice_0002", "large_bowel"] = "3 1"  # overlaps the stomach
    case = read(tree.write())
    assert case.image.shape == (3, 4, 5, 1)
    assert case.image.dtype == np.uint16
    assert case.image[2, 1, 3, 0] == 8 * 700 + 10  # slice 10 after slice 2, rows before columns
    assert case.spacing == (3.0, 1.63, 1.50)  # slices, rows, columns
    assert case.mask[1].tolist() == [[0, 4, 5, 4, 0], [0, 0, 0, 4, 0], [0] * 5, [0] * 5]
    assert not case.mask[[0, 2]].any()


def test_cases_are_scans_of_patients_in_natural_order(tmp_path):
    tree = Tree(tmp_path, ("case10_day2", "case2_day11", "case2_day3"))
    refs = UWMadison(tree.write()).cases()
    assert [(ref.patient, ref.case) for ref in refs] == [
        ("case2", "case2_day3"), ("case2", "case2_day11"), ("case10", "case10_day2"),
    ]  # fmt: skip


def test_nan_is_an_empty_mask_and_other_columns_orders_are_fine(tree):
    tree.header = "segmentation,id,class"
    tree.rows = {(rle, i): organ for (i, organ), rle in tree.rows.items()}
    tree.rows = {}
    root = tree.write()
    lines = [f"NaN,case2_day1_slice_{n},{o}" for n in ("0001", "0002", "0010") for o in CLASSES]
    (root / "train.csv").write_text("\n".join([tree.header, *lines]))
    assert not read(root).mask.any()


def test_long_codes_are_read_and_the_limit_of_other_tables_stays(tree):
    usual = 131_072
    csv.field_size_limit(usual)
    tree.rows["case2_day1_slice_0002", "stomach"] = "2 3" + 140_000 * " " + "9 1"
    assert read(tree.write()).mask.any()
    assert csv.field_size_limit() == usual


@pytest.mark.parametrize("end", [b"\r\n", b"\r\n\r\n", b"\n\n\n", b"\n,,\n", b"\n  \n,,\r\n", b""])
def test_blank_last_lines_of_the_table_are_skipped(tree, end):
    tree.rows["case2_day1_slice_0002", "stomach"] = "2 3 9 1"
    table = tree.write() / "train.csv"
    before = read(tree.root).mask
    table.write_bytes(table.read_bytes().strip() + end)
    assert np.array_equal(read(tree.root).mask, before)


def test_a_gap_in_the_slices_is_named_in_the_log(tree, caplog):
    with caplog.at_level(logging.WARNING, "attnseg"):
        logging.getLogger("attnseg").propagate = True
        read(tree.write())
    assert "no slice between 2 and 10" in caplog.text


def test_the_whole_phantom_reads(phantom):
    reader = UWMadison(phantom)
    cases = [reader.read(ref) for ref in reader.cases()]
    assert {case.image.shape[1:3] for case in cases} == {(60, 72), (64, 56)}
    assert all(case.mask.max() > 0 for case in cases)


def break_rows(edit):
    return lambda tree: edit(tree.rows)


def rename(tree):
    tree.files["case2_day1/scans/slice_0003_5_4_0.00_1.63.png"] = tree.files[FIRST]


def after_writing(content):
    def edit(tree):
        tree.after = lambda: tree.path(FIRST).write_bytes(content(tree.path(FIRST)))

    return edit


def damaged(path):
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    return bytes(data)


def picture(mode):
    def content(path):
        Image.new(mode, (5, 4)).save(path, "PNG")
        return path.read_bytes()

    return content


def jpeg(path):
    Image.new("L", (5, 4)).save(path, "JPEG")
    return path.read_bytes()


def other_size(tree):
    tree.files[FIRST] = np.zeros((7, 7), np.uint16)


def swapped_size(tree):
    tree.files["case2_day1/scans/slice_0002_5_4_1.50_1.63.png"] = np.zeros((5, 4), np.uint16)


def other_spacing(tree):
    tree.files["case2_day1/scans/slice_0003_5_4_2.00_1.63.png"] = tree.files[FIRST]


def twice(tree):
    tree.files["case2_day1/scans/slice_1_5_4_1.50_1.63.png"] = tree.files[FIRST]


def table(text):
    def edit(tree):
        tree.after = lambda: (tree.root / "train.csv").write_bytes(text)

    return edit


KEY = ("case2_day1_slice_0001", "stomach")
FAULTS = {
    "odd run-length code": (break_rows(lambda r: r.update({KEY: "1 2 3"})), "0001, stomach: 3"),
    "run past the end": (break_rows(lambda r: r.update({KEY: "19 3"})), "beyond the 20 pixels"),
    "run not a number": (break_rows(lambda r: r.update({KEY: "x 3"})), "not a whole number"),
    "row missing": (break_rows(lambda r: r.pop(KEY)), "no row for case2_day1_slice_0001, stomach"),
    "unknown class": (break_rows(lambda r: r.update({(KEY[0], "liver"): ""})), "class 'liver'"),
    "contradictory rows": (
        break_rows(lambda r: r.update({(KEY[0] + ",stomach,1 1\n" + KEY[0], "stomach"): ""})),
        "appears twice",
    ),
    "ragged row": (break_rows(lambda r: r.update({KEY: "1 2,3 4"})), "has 4 cells instead of 3"),
    "column missing": (lambda t: setattr(t, "header", "id,class"), "columns 'id,class'"),
    "duplicate column": (lambda t: setattr(t, "header", "id,class,class"), "expected id,class,seg"),
    "semicolons": (table(b"id;class;segmentation\n"), "columns 'id;class;segmentation'"),
    "empty table": (table(b""), "columns ''"),
    "table not text": (table(b"\xff\xfe\x00id"), "not a CSV file"),
    "truncated image": (after_writing(lambda p: p.read_bytes()[:-40]), "1.50_1.63.png: "),
    "flipped bit in image": (after_writing(damaged), "slice_0001_5_4_1.50_1.63.png: "),
    "empty image": (after_writing(lambda p: b""), "not a PNG image"),
    "text for an image": (after_writing(lambda p: b"hello"), "not a PNG image"),
    "JPEG for an image": (after_writing(jpeg), "pixels of type L, not 16-bit grey"),
    "8-bit image": (after_writing(picture("L")), "pixels of type L, not 16-bit grey"),
    "RGB image": (after_writing(picture("RGB")), "pixels of type RGB"),
    "palette image": (after_writing(picture("P")), "pixels of type P"),
    "name of another size": (other_size, "7x7 pixels, unlike its name"),
    "slices of two sizes": (swapped_size, "5x4 pixels, unlike the scan's first slice (4x5)"),
    "two spacings": (other_spacing, "slices of different spacing"),
    "zero spacing": (rename, "not named slice_"),
    "slice twice": (twice, "slice 1 twice"),
}  # fmt: skip


def test_faults_are_named_with_their_file(tmp_path):
    def attempt(folder, edit):
        tree = Tree(folder / "download with späces")
        tree.after = lambda: None
        edit(tree)
        tree.write()
        tree.after()
        read(tree.root)

    check_all(FAULTS, attempt, tmp_path, lambda folder: folder / "download with späces")


def test_an_image_bomb_is_refused_before_decoding(tree, monkeypatch):
    root = tree.write()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(DataError, match="decompression bomb"):
        read(root)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "train.csv: not found"),
        (lambda root: (root.mkdir(), (root / "train.csv").touch()), "train: not found"),
        (
            lambda root: ((root / "train").mkdir(parents=True), (root / "train.csv").touch()),
            "no slices",
        ),
    ],
)
def test_a_folder_that_is_not_the_download(tmp_path, prepare, message):
    prepare(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        UWMadison(tmp_path / "root").cases()
