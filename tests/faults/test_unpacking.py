"""Files that unpack to far more than they hold: read as far as their headers allow, or refused."""

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from attnseg.data.readers import nifti, unpacking
from attnseg.data.readers.nifti import read_nifti
from attnseg.data.readers.pictures import GREY8, LARGEST_TILE, read_picture
from attnseg.data.readers.synapse import MAX_SLICE
from attnseg.errors import DataError
from attnseg.prediction import dicom_headers
from attnseg.prediction.dicom import _read_coded_size, read_series
from tests.data.test_formats import SECTIONS, write_nifti
from tests.faults.test_headers import volume
from tests.prediction.made import organ, segment
from tests.prediction.test_dicom import write as write_series

MOST = 1 << 16  # in place of 64 MB
ZEROS = bytes(1 << 22)
AFTER = b"\xfc\xff\xfc\xffOB\0\0"  # a data element behind the pixels


REAL = unpacking.HEADER_LIMIT


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    for module in (nifti, unpacking, dicom_headers):
        monkeypatch.setattr(module, "HEADER_LIMIT", MOST)


def pack(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content))
    return path


def with_extension(content: bytes) -> bytes:
    """Insert an extension as long as `ZEROS` behind the header."""
    head = bytearray(content[:352])
    head[348] = 1
    head[108:112] = struct.pack("<f", 352 + len(ZEROS))
    return bytes(head) + struct.pack("<2i", len(ZEROS), 6) + ZEROS[8:] + content[352:]


VOLUMES = {
    "zeros behind the voxels": lambda content: content + ZEROS,
    "voxels far behind the header": lambda content: (
        content[:108] + struct.pack("<f", len(ZEROS)) + content[112:] + ZEROS
    ),
    "a huge extension": with_extension,
}


@pytest.mark.parametrize("name", VOLUMES)
def test_a_volume_unpacks_to_no_more_than_its_header_says(tmp_path, name):
    content = write_nifti(tmp_path / "a.nii", {}).read_bytes()
    path = pack(tmp_path / "bomb.nii.gz", VOLUMES[name](content))
    with pytest.raises(DataError, match=r"bomb\.nii\.gz: .*unpacks to more than the .*; restore"):
        read_nifti(path)
    padded = pack(tmp_path / "padded.nii.gz", content + bytes(MOST // 2))
    assert np.array_equal(read_nifti(padded).voxels, read_nifti(tmp_path / "a.nii").voxels)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_that_a_file_cannot_hold_or_memory_has_no_room_for(tmp_path, monkeypatch, name):
    content = write_nifti(tmp_path / "plain.nii", {"dim": [3, 1200, 1200, 1200, 1, 1, 1, 1]})
    path = tmp_path / name
    data = content.read_bytes()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(DataError, match=rf"declares \d+ bytes, more than {name} can hold\); rest"):
        read_nifti(path)
    path = volume(tmp_path / "large.nii.gz")
    assert read_nifti(path).shape == (5, 4, 3)
    monkeypatch.setattr(nifti, "free_memory", lambda: 300)
    with pytest.raises(
        DataError, match=r"large\.nii\.gz: 5x4x3 voxels need .* memory and .*; crop"
    ):
        read_nifti(path)


def deflated(content: bytes, more: bytes = b"") -> bytes:
    """The same file in DICOM's deflated transfer syntax; `more` follows the data set."""
    made = pydicom.dcmread(io.BytesIO(content))
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = io.BytesIO()
    made.save_as(file, implicit_vr=False, little_endian=True)
    whole = file.getvalue()
    (length,) = struct.unpack_from("<I", whole, 140)
    meta, packed = whole[: 144 + length], whole[144 + length :]
    compress = zlib.compressobj(wbits=-15)
    data = zlib.decompress(packed, -15) + more
    return meta + compress.compress(data) + compress.flush()


PACKINGS = {
    "deflated": deflated,
    "gzip": lambda content, more=b"": gzip.compress(content + more),
    "deflated within gzip": lambda content, more=b"": gzip.compress(deflated(content, more)),
    "gzip without preamble": lambda content, more=b"": gzip.compress(content[132:] + more),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_compressed_dicom_is_read_up_to_the_size_of_its_header(tmp_path, name):
    voxels = organ((3, 8, 10)) + 20
    write_series(tmp_path / "plain", voxels)
    (tmp_path / "packed").mkdir()
    for path in (tmp_path / "plain").iterdir():
        ending = "" if name == "deflated" else ".dcm.gz"
        content = PACKINGS[name](path.read_bytes())
        (tmp_path / "packed" / f"{path.name}{ending}").write_bytes(content)
    files = sorted((tmp_path / "packed").iterdir())
    expected = read_series(sorted((tmp_path / "plain").iterdir()))
    series = read_series(files)
    assert np.array_equal(series.voxels, expected.voxels)
    assert np.array_equal(series.affine, expected.affine)
    segment(tmp_path / "packed", tmp_path / "out")
    (mask,) = (tmp_path / "out/masks").iterdir()
    assert pydicom.dcmread(mask).Modality == "SEG"

    plain = (tmp_path / "plain" / files[0].name.partition(".")[0]).read_bytes()
    more = AFTER + struct.pack("<I", len(ZEROS)) + ZEROS
    files[0].write_bytes(PACKINGS[name](plain, more))
    with pytest.raises(DataError, match=r"not readable DICOM \(it unpacks to more than the .*; re"):
        read_series(files)


def test_pictures_within_dicom_have_the_size_of_the_header(tmp_path):
    """Decoders make room for what a picture says of itself, here 60,000 rows and columns."""
    folder = Path(pydicom.__file__).parent / "data/test_files"
    names = ("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG-lossy.dcm")
    for name in names:
        made = pydicom.dcmread(folder / name)
        size = struct.pack(">2H", made.Rows, made.Columns)
        data = made.PixelData
        frame = next(pydicom.encaps.generate_frames(data, number_of_frames=1))
        assert _read_coded_size(frame) == (made.Rows, made.Columns)
        if name.startswith("MR_small_jp2"):
            size = struct.pack(">2I", made.Columns, made.Rows)
        huge = struct.pack(">2I" if len(size) == 8 else ">2H", 60000, 60000)
        assert data.count(size) >= 1
        made.PixelData = data.replace(size, huge, 1)
        made.ImagePositionPatient, made.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        made.PixelSpacing = [1, 1]
        made.save_as(tmp_path / name)
        with pytest.raises(DataError, match="60000x60000 pixels, unlike its header; restore it"):
            read_series([tmp_path / name])
    assert _read_coded_size(b"") is None
    assert _read_coded_size(b"\xff\xd8\xff\xff\xff") is None


def write_tiles(path, side):
    """Write a TIFF of 16 x 16 pixels in one tile of `side` x `side`."""
    data = zlib.compress(bytes(side * side))
    tags = (
        (256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side),
        (324, 134), (325, len(data)),
    )  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    path.write_bytes(head + entries + bytes(4) + data)


def test_tiles_of_a_picture_are_not_far_larger_than_it(tmp_path):
    for side, fine in ((16, True), (8192, False)):
        path = tmp_path / "a.tif"
        write_tiles(path, side)
        if fine:
            assert read_picture(path, GREY8).shape == (16, 16)
        else:
            with pytest.raises(DataError, match=r"a\.tif: tiles of 8192x8192 pixels; save it with"):
                read_picture(path, GREY8)


def test_the_page_says_the_limits():
    page = SECTIONS["Compressed files"]
    assert page.count(f"{REAL >> 20} MB") == 5  # 64 for texts within PNG, too
    assert f"{2 * Image.MAX_IMAGE_PIXELS:,} pixels" in page
    assert f"{MAX_SLICE / 1e6:.0f} MB" in page
    assert LARGEST_TILE == 1 << 24
