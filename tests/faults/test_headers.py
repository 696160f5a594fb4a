"""Headers that say what numbers mean, and files whose names lie; field by field: `test_formats`."""

import gzip
import json
import struct

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from attnseg.data.readers.content import detect_content
from attnseg.data.readers.nifti import read_nifti
from attnseg.data.store import prepare_cases
from attnseg.errors import DataError
from attnseg.evaluation.mask_folders import score_folders
from attnseg.metrics.profiles.strict import Strict
from tests.data.test_formats import AFFINE, BODY, TURNS, save
from tests.data.test_isic2018 import IMAGES, LESION, MASKS, PHOTO, download
from tests.data.test_isic2018 import read as read_isic
from tests.data.test_nnunet import Dataset
from tests.prediction.made import organ, segment
from tests.prediction.test_dicom import write as write_series


def volume(path, array=BODY, affine=AFFINE, codes=(1, 2), kind=nib.Nifti1Image, unit="mm"):
    image = kind(array, affine)
    image.header.set_xyzt_units(unit)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def test_voxels_are_measured_in_the_unit_of_the_header(tmp_path, caplog):
    for number, (unit, factor) in enumerate((("mm", 1), ("meter", 1e-3), ("micron", 1e3))):
        image = nib.Nifti1Image(BODY, np.diag([factor, factor, factor, 1]) @ AFFINE)
        image.header.set_xyzt_units(unit, "sec")
        nib.save(image, tmp_path / f"{unit}.nii.gz")
        read = read_nifti(tmp_path / f"{unit}.nii.gz")
        assert read.spacing == pytest.approx((4, 3, 2)), number
        assert np.allclose(read.affine, AFFINE)
    assert not caplog.messages
    path = volume(tmp_path / "none.nii", unit="unknown")
    assert read_nifti(path).spacing == pytest.approx((4, 3, 2))
    (message,) = caplog.messages
    assert message == f"{path}: xyzt_units names no unit of length; voxel sizes are taken as mm"
    content = bytearray(path.read_bytes())
    content[123] = 5
    path.write_bytes(content)
    with pytest.raises(DataError, match="xyzt_units has no unit of length 5; correct the header"):
        read_nifti(path)


def test_an_unknown_orientation_is_warned_of(tmp_path, caplog):
    read_nifti(volume(tmp_path / "known.nii"))
    assert not caplog.messages
    path = volume(tmp_path / "unknown.nii", codes=(0, 0))
    segment(path, tmp_path / "out", size=(12, 12))
    (message,) = [text for text in caplog.messages if "orientation" in text]
    assert message.startswith(f"{path}: qform_code and sform_code are 0, so the orientation is not")
    caplog.clear()
    image = nib.Nifti1Image(BODY, AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(np.diag([-1, 1, 1, 1]) @ AFFINE, 2)
    image.set_qform(AFFINE, 1)
    nib.save(image, tmp_path / "both.nii")
    assert np.allclose(read_nifti(tmp_path / "both.nii").affine, image.get_sform())
    assert caplog.messages == [
        f"{tmp_path / 'both.nii'}: the orientation is LAS by its sform, which counts, and RAS by "
        "its qform"
    ]


@pytest.mark.parametrize("end", [".hdr", ".HDR", ".hdr.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_a_pair_is_one_image(tmp_path, end, kind):
    image = organ((9, 8, 5))
    pair = kind(image, AFFINE)
    pair.header.set_xyzt_units("mm")
    header = tmp_path / "in" / f"brain{end}"
    voxels = header.with_name(header.name.replace("hdr", "img").replace("HDR", "IMG"))
    header.parent.mkdir()
    with (gzip.open if end.endswith("gz") else open)(header, "wb") as file:
        file.write(pair.header.binaryblock + bytes(4))
    with (gzip.open if end.endswith("gz") else open)(voxels, "wb") as file:
        file.write(np.asfortranarray(image).tobytes("F"))
    assert np.array_equal(
        read_nifti(header).voxels, read_nifti(volume(tmp_path / "a.nii", image)).voxels
    )
    segment(header.parent, tmp_path / "out", size=(24, 27))
    segment(voxels, tmp_path / "alone", size=(24, 27))
    masks = [nib.load(next((tmp_path / out / "masks").iterdir())) for out in ("out", "alone")]
    for mask in masks:
        assert np.allclose(mask.affine, AFFINE)
        assert np.array_equal(np.asarray(mask.dataobj), image > 100)
        assert mask.header.get_xyzt_units()[0] == "mm"
    voxels.unlink()
    with pytest.raises(DataError, match=r"header of a pair without its \.img file; restore"):
        read_nifti(header)


def test_a_volume_of_two_axes_is_a_slice(tmp_path):
    image = organ((9, 8))
    path = volume(tmp_path / "in" / "a.nii.gz", image)
    assert np.array_equal(read_nifti(path).voxels[0], image.T[::-1, ::-1])
    segment(path.parent, tmp_path / "out", size=(24, 27))
    mask = nib.load(tmp_path / "out/masks/a.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), image > 100)


def test_the_content_decides_what_is_compressed(tmp_path):
    plain = volume(tmp_path / "a.nii").read_bytes()
    (tmp_path / "named.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    for name in ("named.nii.gz", "packed.nii"):
        assert np.array_equal(
            read_nifti(tmp_path / name).voxels, read_nifti(tmp_path / "a.nii").voxels
        )
    (tmp_path / "twice.nii.gz").write_bytes(gzip.compress(gzip.compress(plain)))
    with pytest.raises(
        DataError, match=r"twice\.nii\.gz: compressed twice by gzip; unpack it once"
    ):
        segment(tmp_path / "twice.nii.gz", tmp_path / "out")
    broken = bytearray(gzip.compress(plain))
    broken[-8] ^= 1
    (tmp_path / "packed.nii").write_bytes(broken)
    with pytest.raises(DataError, match="CRC check failed"):
        read_nifti(tmp_path / "packed.nii")


def test_formats_that_are_no_volume_say_what_they_are(tmp_path):
    nib.save(nib.AnalyzeImage(BODY, AFFINE), tmp_path / "a.hdr")
    with pytest.raises(DataError, match=r"a\.hdr: Analyze 7\.5.*left and right are unknown; conv"):
        read_nifti(tmp_path / "a.hdr")
    content = bytearray(nib.Nifti2Image(BODY, AFFINE).to_bytes())
    struct.pack_into("<i", content, 504, 3001)
    (tmp_path / "a.dconn.nii").write_bytes(content)
    with pytest.raises(DataError, match=r"CIFTI, values of points of a surface; convert it"):
        read_nifti(tmp_path / "a.dconn.nii")


BEGINNINGS = {
    "NIfTI header": struct.pack("<i", 348), "TIFF": b"II*\0", "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff", "BMP": b"BM" + bytes(12) + struct.pack("<i", 40),
}  # fmt: skip


def test_dicom_behind_the_beginning_of_another_format(tmp_path):
    write_series(tmp_path / "series", organ((6, 5, 3)))
    path = next(path for path in (tmp_path / "series").rglob("*") if path.is_file())
    content = path.read_bytes()
    for name, start in BEGINNINGS.items():
        path.write_bytes(start + content[len(start) :])
        assert detect_content(path).kind == "dicom", name
    path.write_bytes(content[132:])
    assert (detect_content(path).kind, detect_content(path).form) == ("dicom", "bare")


def test_pictures_within_gzip_and_dicom_named_nifti_say_what_they_are(tmp_path):
    Image.fromarray(LESION).save(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(gzip.compress((tmp_path / "a.png").read_bytes()))
    with pytest.raises(DataError, match=r"a\.png: PNG compressed by gzip; unpack it \(gunzip\)"):
        segment(tmp_path / "in", tmp_path / "out")
    write_series(tmp_path / "series", organ((6, 5, 3)))
    path = next((tmp_path / "series").iterdir()).rename(tmp_path / "a.nii.gz")
    for name, kind in (("a.nii.gz", "DICOM"), ("a.png", "PNG")):
        with pytest.raises(DataError, match=rf"NIfTI file \({kind} by its content\); restore"):
            read_nifti(path.with_name(name))


def test_warnings_that_repeat_in_a_batch_are_counted(tmp_path, caplog):
    """In prediction, preparation and the scoring of masks; the manifest has each of them."""
    text = "xyzt_units names no unit of length; voxel sizes are taken as mm"
    for name in "abcd":
        volume(tmp_path / f"in/{name}.nii", organ((9, 8, 5)), unit=[0, 2][name == "c"])
    segment(tmp_path / "in", tmp_path / "out", size=(24, 27))
    places = [tmp_path / f"in/{name}.nii" for name in "abd"]
    counted = f"2 more files: {text} ({places[1]}, {places[2]})"
    assert [m for m in caplog.messages if "unit" in m] == [f"{places[0]}: {text}", counted]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    warned = {item["name"]: item["warnings"] for item in manifest["items"]}
    assert warned == {n: [] if n == "c" else [f"{tmp_path}/in/{n}.nii: {text}"] for n in "abcd"}

    data = Dataset(tmp_path / "set", numTraining=16)  # as many are prepared in two processes
    for name in "abcdefghijklmnop":
        data.case(name)
    for path in sorted((tmp_path / "set").rglob("*.nii.gz"))[1:]:
        image = nib.load(path)
        image.header.set_xyzt_units(0)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    caplog.clear()
    reader = data.reader()
    prepare_cases(reader, reader.cases(), tmp_path / "store")
    first, last = caplog.messages
    assert first.endswith(f".nii.gz: {text}")
    assert last.startswith(f"30 more files: {text} (")

    for place in ("pred", "truth"):
        for name in "ab":
            volume(tmp_path / place / f"{name}.nii", (organ() > 100).astype(np.uint8), unit=0)
    caplog.clear()
    score_folders(tmp_path / "pred", tmp_path / "truth", [Strict()])
    assert caplog.messages[0] == f"{tmp_path}/truth/a.nii: {text}"
    assert caplog.messages[1].startswith(f"3 more files: {text} (")


NO_PICTURES = {
    "words": b"BMI,age\n21,33\n", "numbers": bytes(range(256)) * 9, "zeros": bytes(4000),
    "a group of DICOM": struct.pack("<HHI", 8, 5, 10) + b"hello wo",
    "descending tags": struct.pack("<HHI", 8, 5, 0) + struct.pack("<HHI", 8, 4, 0),
}  # fmt: skip


def test_other_files_are_not_taken_for_images(tmp_path):
    for name, content in NO_PICTURES.items():
        (tmp_path / "a").write_bytes(content)
        assert detect_content(tmp_path / "a").kind is None, name


def test_a_photograph_is_turned_alike_in_training_and_prediction(tmp_path):
    for number, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = number
        root = tmp_path / str(number)
        download(root)
        for place, array in ((IMAGES, PHOTO), (MASKS, LESION * 255)):
            for path in sorted((root / place).glob("ISIC_0000001*")):
                save(path, np.ascontiguousarray(turn(array)), exif=exif)
        case = read_isic(root)
        assert np.array_equal(case.image[0], PHOTO), number
        assert np.array_equal(case.mask[0], LESION), number
        grey = organ((8, 10)).astype(np.uint8)
        save(tmp_path / "in.png", np.ascontiguousarray(turn(grey)), exif=exif)
        segment(tmp_path / "in.png", root / "out", size=(24, 30))
        with Image.open(root / "out/masks/in.png") as mask:
            assert np.array_equal(np.array(mask) > 0, grey > 100)
