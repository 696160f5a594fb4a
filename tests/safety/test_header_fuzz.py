"""Damaged headers: refused in a line, or read as the format's own library reads them.

The quick tests try some hundreds of headers of each format, those marked slow 10,000.
"""

import contextlib
import io
import random
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageOps

from attnseg.data.readers.nifti import read_nifti
from attnseg.data.readers.pictures import GREY8, GREY16, RGB, read_label_picture, read_picture
from attnseg.errors import DataError
from tests.data.test_formats import AFFINE, BODY

EXTREMES = (b"\0", b"\1", b"\2", b"\3", b"\7", b"\x80", b"\xff", b"\x7f\xff", b"\0\0\xc0\x7f")
# About what is refused or read nibabel and Pillow say much, which is not tested here.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)]),
]


def damage(content: bytes, length: int, generator: random.Random) -> bytes:
    """Change up to three places of the first bytes, and leave the length as it is."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(length)
        change = generator.choice((*EXTREMES, bytes([generator.randrange(256)])))
        data[at : at + len(change)] = change
    return bytes(data[: len(content)])


def volumes() -> list[bytes]:
    """NIfTI-1 and 2, by an sform, by a qform, scaled, of three types."""
    made = []
    for kind, codes, dtype in (
        (nib.Nifti1Image, (1, 2), np.int16), (nib.Nifti1Image, (1, 0), np.uint8),
        (nib.Nifti1Image, (0, 0), np.float32), (nib.Nifti2Image, (1, 1), np.int16),
    ):  # fmt: skip
        image = kind(np.abs(BODY).clip(0, 255).astype(dtype), AFFINE)
        image.set_qform(AFFINE, codes[0])
        image.set_sform(AFFINE, codes[1])
        image.header.set_xyzt_units("mm")
        made.append(image.to_bytes())
    return made


def check_volume(volume, content: bytes) -> None:
    """Compare a volume with nibabel's own decoding, in the orientation nearest to RAS."""
    kind = nib.Nifti2Image if content[4:6] == b"n+" else nib.Nifti1Image
    image = kind.from_bytes(content)
    unit = {1: 1000.0, 3: 0.001}.get(int(image.header["xyzt_units"]) & 7, 1.0)
    affine = np.diag([unit, unit, unit, 1]) @ image.affine
    assert np.allclose(volume.affine, affine, rtol=1e-6, equal_nan=True)
    data = np.asarray(image.dataobj)
    shape = (*data.shape, 1, 1)[:3]
    assert data.size == np.prod(shape)
    plain = nib.as_closest_canonical(
        nib.Nifti1Image(data.reshape(shape).astype(np.float64), affine)
    )
    voxels = np.asarray(plain.dataobj)[::-1, ::-1].transpose(2, 1, 0)
    assert np.array_equal(volume.voxels, voxels.astype(np.float32))
    sizes = np.linalg.norm(plain.affine[:3, :3], axis=0)[::-1]
    assert np.allclose(volume.spacing, sizes)


def test_headers_of_nifti(tmp_path, count):
    generator, path, read = random.Random(0), tmp_path / "a.nii", 0
    examples = volumes()
    for number in range(count):
        example = examples[number % len(examples)]
        content = damage(example, 544 if example[4:6] == b"n+" else 352, generator)
        path.write_bytes(content)
        try:
            volume = read_nifti(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            continue
        check_volume(volume, content)
        read += 1
    assert count / 10 < read < count


def mend_sums(content: bytes) -> bytes:
    """Return a PNG file with the right checksum of each chunk, as far as chunks can be found."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def pictures(kind: str) -> list[bytes]:
    """Grey of 8 and 16 bits, colours, palettes, few bits and EXIF, as far as a format has them."""
    grey = np.arange(130, dtype=np.uint8).reshape(10, 13)
    images = [Image.fromarray(grey), Image.fromarray(np.stack([grey] * 3, -1))]
    if kind != "JPEG":
        images.append(Image.fromarray(grey.astype(np.uint16) * 400))
        images.append(images[0].quantize(4))
        images.append(Image.fromarray(grey > 50))
    made = []
    for number, image in enumerate(images):
        exif = Image.Exif()
        exif[0x0112] = number + 3
        file = io.BytesIO()
        more = {"compression": "tiff_lzw"} if kind == "TIFF" and number == 1 else {}
        image.save(file, kind, exif=exif, **more)
        made.append(file.getvalue())
    return made


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_headers_of_pictures(tmp_path, kind, count):
    generator, path, read = random.Random(0), tmp_path / f"a.{kind.lower()}", 0
    examples = pictures(kind)
    for number in range(count):
        example = examples[number % len(examples)]
        content = damage(example, min(len(example), 200), generator)
        if kind == "PNG" and number % 2:
            content = mend_sums(content)
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            read_label_picture(path)
        try:
            pixels = read_picture(path, (*GREY8, *GREY16, *RGB))
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            continue
        with Image.open(io.BytesIO(content)) as image:
            turned = ImageOps.exif_transpose(image)
        assert pixels.shape[:2] == turned.size[::-1]
        assert np.array_equal(pixels, np.array(turned))
        read += 1
    assert count / 20 < read < count
