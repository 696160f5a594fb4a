"""Images that are wrong or strange; more beside each reader's own tests."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from attnseg.data import store
from attnseg.data.labels import Labels
from attnseg.data.reader import Case, CaseRef, check_case
from attnseg.data.readers.nifti import read_nifti
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.slicing import SliceView
from attnseg.errors import DataError
from tests.data.test_isic2018 import IMAGES, PHOTO, download
from tests.data.test_isic2018 import read as read_isic
from tests.data.test_nnunet import LABELS, PICTURE, Dataset
from tests.data.uw_tree import Tree


def refused(error, message, root):
    text = str(error.value)
    assert message in text
    assert text.startswith(str(root))
    assert "\n" not in text
    assert "; " in text


def photo(pixels, name="ISIC_0000001.png"):
    def edit(root):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(root / IMAGES / name)

    return edit


def cmyk(root):
    (root / IMAGES / "ISIC_0000001.png").unlink()
    Image.fromarray(PHOTO).convert("CMYK").save(root / IMAGES / "ISIC_0000001.jpg")


PHOTO_FAULTS = {
    "grey with alpha": (photo(Image.fromarray(PHOTO[..., 0]).convert("LA")), "type LA, not colour"),
    "colour with alpha": (photo(Image.fromarray(PHOTO).convert("RGBA")), "type RGBA, not colour"),
    "palette": (photo(Image.fromarray(PHOTO).convert("P")), "type P, not colour"),
    "16-bit": (photo(PHOTO[..., 0].astype(np.uint16)), "type I;16, not colour"),
    "1-bit": (photo(PHOTO[..., 0] > 9), "type 1, not colour"),
    "four inks": (cmyk, "type CMYK, not colour"),
}


@pytest.mark.parametrize("fault", PHOTO_FAULTS)
def test_a_photo_of_other_pixels(tmp_path, fault):
    edit, message = PHOTO_FAULTS[fault]
    edit(download(tmp_path))
    with pytest.raises(DataError) as error:
        read_isic(tmp_path)
    refused(error, message, tmp_path)


class Channels:
    labels, channels = Labels(("organ",)), 3


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channels_than_the_dataset_has(channels):
    case = Case(np.zeros((1, 4, 4, channels), np.uint8), np.zeros((1, 4, 4), np.uint8), None)
    with pytest.raises(DataError, match=f"c: {channels} channels instead of 3; restore the file"):
        check_case(case, CaseRef("p", "c", ()), Channels())


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_any_number_of_channels_that_the_dataset_declares_works(tmp_path, channels):
    names = [f"C{n}" for n in range(channels)]
    scan = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    data = Dataset(tmp_path / "root", channels=names)
    data.case(channels=[scan + n for n in range(channels)])
    assert data.read().image.shape == (2, 3, 4, channels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_a_picture_of_a_pixel_or_a_line(tmp_path, shape):
    data = Dataset(tmp_path, ".png")
    data.case(channels=(np.ones(shape, np.uint8),), labels=np.zeros(shape, np.uint8))
    with pytest.raises(DataError) as error:
        data.read()
    refused(error, "voxels are no picture; exclude the case", tmp_path)


def test_a_volume_without_voxels(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4)), path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:44] = struct.pack("<h", 0)
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError) as error:
        read_nifti(path)
    refused(error, "a.nii.gz: ", tmp_path)


TYPES = {
    "int32": (np.int32, 70_000, np.float32),
    "float64": (np.float64, 0.25, np.float32),
    "whole float64": (np.float64, 7.0, np.uint8),
    "uint8": (np.uint8, 255, np.uint8),
    "uint16": (np.uint16, 65_535, np.uint16),
    "int64": (np.int64, -3, np.int16),
}


@pytest.mark.parametrize("name", TYPES)
def test_numbers_of_any_type_keep_their_values(tmp_path, name):
    dtype, value, expected = TYPES[name]
    voxels = np.zeros((2, 3, 4), dtype)
    voxels[1, 2, 3] = value
    image = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]), dtype=dtype)
    nib.save(image, tmp_path / "a.nii.gz")
    found = read_nifti(tmp_path / "a.nii.gz").voxels
    assert found.dtype == expected
    assert found[3, 2, 1] == value


def test_numbers_too_large_for_the_store(tmp_path):
    """Of float64 beyond float32, which would become infinite without a word."""
    scan = np.zeros((2, 3, 4))
    scan[0, 0, 0] = 1e300
    scan[0, 0, 1] = 0.5
    with pytest.raises(DataError) as error:
        Dataset(tmp_path).case(channels=(scan,)).read()
    refused(error, "NaN or infinite voxels, or beyond 3.4e+38", tmp_path)


def test_8_and_16_bit_pictures_in_one_scan(tmp_path):
    tree = Tree(tmp_path)
    name = sorted(tree.files)[1]
    tree.files[name] = tree.files[name].astype(np.uint8)
    reader = UWMadison(tree.write())
    with pytest.raises(DataError) as error:
        reader.read(reader.cases()[0])
    refused(error, f"{name.split('/')[-1]}: pixels of type L, not 16-bit grey", tmp_path)


def test_a_constant_picture_is_warned_of_and_stays_finite(tmp_path, caplog):
    import logging

    logging.getLogger("attnseg").propagate = True
    tree = Tree(tmp_path / "root")
    tree.files = {name: np.full((4, 5), 300, np.uint16) for name in tree.files}
    reader = UWMadison(tree.write())
    with caplog.at_level(logging.WARNING, "attnseg"):
        (case,) = store.prepare_cases(reader, reader.cases(), tmp_path / "store")
    assert "every voxel has nearly the same intensity" in caplog.text
    assert np.isfinite(SliceView((16, 16)).image(case, 0)).all()


@pytest.mark.parametrize("size", [(2, 2), (16, 16), (3, 64)])
def test_an_image_larger_or_smaller_than_the_network_takes_fits(tmp_path, size):
    """Images are resized, not cropped: none is too small."""
    tree = Tree(tmp_path / "root")
    reader = UWMadison(tree.write())
    (case,) = store.prepare_cases(reader, reader.cases(), tmp_path / "store")
    view = SliceView(size)
    assert view.image(case, 0).shape == (*size, 1)
    assert view.mask(case.mask[0]).shape == size


def test_every_file_cut_at_any_place_is_refused_or_read_whole(tmp_path):
    path = tmp_path / "imagesTr/a_0000.png"
    data = Dataset(tmp_path, ".png").case(channels=(PICTURE,), labels=LABELS[0])
    whole = path.read_bytes()
    refusals = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            case = data.read()
        except DataError:
            refusals += 1
        else:
            assert np.array_equal(case.image[0, ..., 0], PICTURE)
    assert refusals > len(whole) // 2  # not where only check sum and end are missing
