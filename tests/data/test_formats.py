"""docs/formats.md says what is done with each field of a header: here it is changed and tried."""

import re
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from attnseg.data.readers.nifti import read_nifti
from attnseg.data.readers.pictures import GREY8, GREY16, RGB, read_label_picture, read_picture
from attnseg.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs/formats.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

BODY = np.random.default_rng(0).integers(-99, 999, (5, 4, 3)).astype(np.int16)
AFFINE = np.array([[2, 0, 0, 9], [0, 3, 0, 8], [0, 0, 4, 7], [0, 0, 0, 1.0]])
# Another value of each field of NIfTI, and what else is said in the header before.
NIFTI = {
    "sizeof_hdr": 349, "magic": b"n+3", "dim": [3, 5, 3, 4, 1, 1, 1, 1], "datatype": 512,
    "bitpix": 8, "vox_offset": 368, "scl_slope": 2, "scl_inter": 5, "xyzt_units": 3,
    "sform_code": 0, "srow_x": [-2, 0, 0, 9], "srow_y": [0, 3, 0, 5], "srow_z": [0, 0, 5, 7],
    "intent_code": 1001, "intent_p1": 3, "intent_p2": 3, "intent_p3": 3, "intent_name": b"x",
    "cal_min": 3, "cal_max": 5, "dim_info": 57, "slice_start": 1, "slice_end": 2, "slice_code": 1,
    "slice_duration": 2, "toffset": 2, "descrip": b"x", "aux_file": b"x", "data_type": b"x",
    "db_name": b"x", "extents": 16384, "session_error": 1, "regular": b"r", "glmax": 9, "glmin": 1,
    "pixdim": [1, 2, 3, 5, 0, 0, 0, 0], "qform_code": 0, "quatern_b": 0.1, "quatern_c": 0.1,
    "quatern_d": 0.1, "qoffset_x": 1, "qoffset_y": 1, "qoffset_z": 1,
}  # fmt: skip
NO_SFORM = ("pixdim", "qform_code", *(name for name in NIFTI if name[:5] in ("quate", "qoffs")))
BEFORE = {"sform_code": {"qoffset_x": 5}, **{name: {"sform_code": 0} for name in NO_SFORM}}


def rows(section):
    """The fields of each row of a section's table, and the word that says what is done."""
    lines = [line.strip("|").split("|") for line in SECTIONS[section].splitlines() if "|" in line]
    return [(cells[0].strip(), cells[1].strip()) for cells in lines[2:]]


def write_nifti(path, values):
    """Write a volume of which some fields of the header say otherwise, as nibabel would not."""
    image = nib.Nifti1Image(BODY, AFFINE)
    image.set_qform(AFFINE, 1)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes() + bytes(16))
    for name, value in values.items():
        dtype, offset = image.header.template_dtype.fields[name]
        raw = np.asarray(value, dtype.base).tobytes()
        content[offset : offset + len(raw)] = raw
    path.write_bytes(content)
    return path


def judge_nifti(path, before, change, caplog):
    """Return what is done with a change of the header."""
    plain = read_nifti(write_nifti(path.with_name("before.nii"), before))
    caplog.clear()
    try:
        volume = read_nifti(write_nifti(path, before | change))
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
        return "refused"
    assert all(str(path) in message for message in caplog.messages)
    theirs = nib.load(path)
    unit = {1: 1000, 3: 0.001}.get(int(theirs.header["xyzt_units"]) & 7, 1)
    assert np.allclose(volume.affine[:3], theirs.affine[:3] * unit)
    same = np.array_equal(plain.voxels, volume.voxels) and np.allclose(plain.affine, volume.affine)
    return ("warned of" if caplog.records else "ignored") if same else "applied"


def test_every_field_of_nifti_is_listed_and_done_with_as_the_page_says(tmp_path, caplog):
    listed = {name: done for names, done in rows("NIfTI") for name in re.findall(r"`(\w+)`", names)}
    assert set(listed) == set(nib.Nifti1Header.template_dtype.names) == set(NIFTI)
    judged = {
        name: judge_nifti(tmp_path / "a.nii", BEFORE.get(name, {}), {name: value}, caplog)
        for name, value in NIFTI.items()
    }
    assert judged == listed


def low_png(path, array, bits):
    """Write a grey PNG of 1, 2 or 4 bits."""
    height, width = array.shape
    each = 8 // bits
    padded = np.pad(array.astype(np.uint8), ((0, 0), (0, -width % each)))
    shifts = 8 - bits * (np.arange(each) + 1)
    packed = (padded.reshape(height, -1, each) << shifts).sum(-1).astype(np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    return write_png(path, (width, height), bits, lines)


def write_png(path, size, bits, lines, colour=0):
    head = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    return path


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
LABELS = np.arange(12).reshape(3, 4) % 3
COLOURS = np.stack([GREY, GREY + 1, GREY + 2], -1)
SHARP = COLOURS.repeat(16, 0).repeat(16, 1)  # survives JPEG
TURNS = {  # as stored, the upright picture, by the orientation of EXIF
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: a.swapaxes(0, 1), 6: np.rot90, 7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}  # fmt: skip


def save(path, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def refuses(read, *arguments):
    """Return whether a file is refused in a line with its name."""
    try:
        read(*arguments)
    except DataError as error:
        assert str(error).startswith(f"{arguments[0]}: ")
        assert "; " in str(error)
        assert "\n" not in str(error)
        return True
    return False


def judge_orientation(folder):
    exif = Image.Exif()
    for number, turn in TURNS.items():
        exif[0x0112] = number
        stored = np.ascontiguousarray(turn(SHARP))
        for name in ("a.jpg", "a.png", "a.tif"):
            pixels = read_picture(save(folder / name, stored, exif=exif), RGB)
            assert pixels.shape == SHARP.shape
            assert np.abs(pixels.astype(int) - SHARP).mean() < 3, (name, number)
            if name != "a.jpg":
                mask = np.ascontiguousarray(turn(LABELS.astype(np.uint8)))
                values, _ = read_label_picture(save(folder / name, mask, exif=exif))
                assert np.array_equal(values, LABELS)
    return "applied"


def judge_few_bits(folder):
    for bits in (1, 2, 4):
        labels = LABELS % (1 << bits)
        path = low_png(folder / "a.png", labels, bits)
        values, white = read_label_picture(path)
        assert np.array_equal(values, labels)
        assert white == (1 << bits) - 1
        if bits == 1:
            assert refuses(read_picture, path, GREY8)
        else:
            assert np.array_equal(read_picture(path, GREY8), labels * (255 // white))
    return "applied"


def judge_sixteen_bits(folder):
    deep = GREY.astype(np.uint16) * 250
    for name in ("a.png", "a.tif"):
        assert np.array_equal(read_picture(save(folder / name, deep), GREY16), deep)
        assert np.array_equal(read_label_picture(folder / name)[0], deep)
        assert refuses(read_picture, folder / name, GREY8)
    lines = b"".join(b"\0" + np.repeat(line, 3).astype(">u2").tobytes() for line in deep)
    path = write_png(folder / "colour.png", (4, 3), 16, lines, colour=2)
    assert refuses(read_picture, path, RGB)
    return "applied"


def palette(colours, indices=LABELS):
    image = Image.fromarray(indices.astype(np.uint8)).convert("L")
    image.putpalette([value for colour in colours for value in colour])
    return image


def judge_palette(folder):
    allowed = [
        [(0, 0, 0), (128, 0, 0), (0, 128, 0)],
        [(255, 255, 255), (255, 0, 0), (0, 0, 255)],
        [(0, 0, 0), (1, 1, 1), (2, 2, 2)],
    ]
    for colours in allowed:
        for name in ("a.png", "a.tif", "a.bmp"):
            path = save(folder / name, palette(colours))
            assert np.array_equal(read_label_picture(path)[0], LABELS), (name, colours)
            # Pillow takes a bitmap with a palette of its own indices for a grey one.
            grey = name == "a.bmp" and colours[1] == (1, 1, 1)
            assert grey or refuses(read_picture, path, (*GREY8, *RGB))
    path = save(folder / "a.png", palette([(0, 0, 0), (255, 255, 255)], LABELS % 2))
    assert np.array_equal(read_label_picture(path)[0], LABELS % 2)
    return "applied"


def judge_grey_palette(folder):
    """As programs write that make files smaller: the most frequent value comes first."""
    wrong = [
        ([(255, 255, 255), (0, 0, 0)], LABELS % 2),
        ([(2, 2, 2), (0, 0, 0), (1, 1, 1)], LABELS),
        ([(0, 0, 0), (2, 2, 2)], LABELS % 2),
        ([(17 * k,) * 3 for k in range(16)], LABELS),
    ]
    for colours, indices in wrong:
        assert refuses(read_label_picture, save(folder / "a.png", palette(colours, indices)))
    return "refused"


def judge_inversion(folder):
    """Tag 262, of which 0 says that 0 is white; Pillow writes such files of one bit only."""
    path = save(folder / "a.tif", GREY)
    content = path.read_bytes()
    tag = content.index(struct.pack("<HHI", 262, 3, 1))
    path.write_bytes(content[: tag + 8] + b"\0" + content[tag + 9 :])
    assert np.array_equal(read_picture(path, GREY8), 255 - GREY)
    assert refuses(read_label_picture, path)
    bits = save(folder / "b.tif", LABELS % 2 == 1)
    assert np.array_equal(read_label_picture(bits)[0], LABELS % 2)
    return "applied"


def judge_jpeg(folder):
    for name, options in (
        ("a.jpg", {}), ("a.png", {"format": "JPEG"}), ("a.tif", {"compression": "jpeg"}),
    ):  # fmt: skip
        path = save(folder / name, GREY, **options)
        assert not refuses(read_picture, path, GREY8)
        assert refuses(read_label_picture, path)
    return "refused"


def judge_modes(folder):
    made = Image.fromarray(COLOURS)
    for name, image in (
        ("a.png", made.convert("RGBA")), ("a.png", made.convert("LA")),
        ("a.jpg", made.convert("CMYK")), ("a.tif", made.convert("I")),
        ("a.tif", made.convert("F")),
    ):  # fmt: skip
        assert refuses(read_picture, save(folder / name, image), (*GREY8, *GREY16, *RGB))
        assert refuses(read_label_picture, folder / name)
    return "refused"


def judge_pages(folder):
    pages = [Image.fromarray(GREY)] * 2
    for name in ("a.tif", "a.png"):
        path = save(folder / name, pages[0], save_all=True, append_images=[Image.fromarray(GREY.T)])
        if name == "a.tif":
            assert refuses(read_picture, path, GREY8)
    return "refused"


def judge_grey_bitmap(folder):
    lines = b"".join(bytes([1, 2, 0, 0]) for _ in range(3))
    greys = b"".join(bytes((k, k, k, 0)) for k in range(16))
    head = struct.pack("<IiiHHIIiiII", 40, 4, 3, 1, 4, 0, len(lines), 0, 0, 16, 0)
    start = struct.pack("<2sIHHI", b"BM", 118 + len(lines), 0, 0, 118)
    (folder / "a.bmp").write_bytes(start + head + greys + lines)
    assert refuses(read_picture, folder / "a.bmp", GREY8)
    assert refuses(read_label_picture, folder / "a.bmp")
    return "refused"


def judge_damaged_tags(folder, caplog):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 99
    path = save(folder / "a.jpg", SHARP, exif=exif)
    content = path.read_bytes()
    assert read_picture(path, RGB).shape == (64, 48, 3)
    assert not caplog.messages
    count = content.index(b"Exif") + 15
    path.write_bytes(content[:count] + b"\x7f" + content[count + 1 :])  # of tags
    assert read_picture(path, RGB).ndim == 3
    (message,) = caplog.messages
    assert message.startswith(f"{path}: ")
    assert message.endswith("; an orientation may be lost")
    return "warned of"


def judge_description(folder):
    text = {"dpi": (300, 300), "comment": "x"}
    for name, options in (("a.png", {**text, "gamma": 2.2}), ("a.tif", text)):
        path = save(folder / name, COLOURS, icc_profile=b"x" * 200, **options)
        assert np.array_equal(read_picture(path, RGB), COLOURS)
    return "ignored"


PICTURES = {
    "EXIF or TIFF orientation": judge_orientation,
    "bits per sample: 1, 2, 4": judge_few_bits,
    "bits per sample: 16": judge_sixteen_bits,
    "palette": judge_palette,
    "palette of greys that are neither the indices nor black and white": judge_grey_palette,
    "white is zero (TIFF)": judge_inversion,
    "JPEG, also within TIFF": judge_jpeg,
    "alpha, CMYK, 32 bits": judge_modes,
    "several pages": judge_pages,
    "grey bitmap of 4 bits": judge_grey_bitmap,
    "EXIF or TIFF tags that are damaged": judge_damaged_tags,
    "gamma, colour profile, resolution, comments": judge_description,
}


@pytest.mark.parametrize("field", PICTURES)
def test_every_field_of_pictures_is_done_with_as_the_page_says(tmp_path, field, caplog):
    judge = PICTURES[field]
    more = (caplog,) if judge is judge_damaged_tags else ()
    assert judge(tmp_path, *more) == dict(rows("Pictures"))[field]


def test_every_field_of_pictures_is_tried():
    assert set(PICTURES) == set(dict(rows("Pictures")))
