"""Every volume is written by hand here, so that each voxel's place is known."""

import gzip
import struct
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from attnseg.data.readers.nifti import check_same_grid, map_labels, read_nifti
from attnseg.errors import DataError
from tests.data.refusals import check_all

# Value 100 x + 10 y + z at step x to the left, y to the back, z up.
BODY = np.fromfunction(lambda x, y, z: 100 * x + 10 * y + z, (2, 3, 4)).astype(np.int16)
SIZES = (0.7, 0.9, 5.0)  # mm along x, y, z


def tilted(sizes=SIZES, degrees=15.0):
    """An affine whose axes run left, back and up, but lean."""
    a, b = np.radians([degrees, degrees / 2])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-1, -1, 1]) @ np.diag(sizes)
    affine[:3, 3] = (30, -20, 7)
    return affine


def write(path, voxels=BODY, affine=None, **header):
    image = nib.Nifti1Image(voxels, tilted() if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def patched(path, offset, layout, *values):
    """Write numbers into a saved header, as nibabel would not."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, offset, *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_every_order_and_direction_of_axes_is_turned_to_one(tmp_path, axes):
    expected = BODY.transpose(2, 1, 0)  # feet up, front to back, right to left
    for flips in product((1, -1), repeat=3):
        turned, affine = BODY[:: flips[0], :: flips[1], :: flips[2]], tilted()
        for axis in np.flatnonzero(np.array(flips) < 0):
            affine[:3, 3] += affine[:3, axis] * (BODY.shape[axis] - 1)
            affine[:3, axis] *= -1
        order = [*axes, 3]
        path = write(tmp_path / "a.nii.gz", turned.transpose(axes), affine[:, order])
        volume = read_nifti(path)
        assert np.array_equal(volume.voxels, expected), flips
        assert volume.spacing == pytest.approx((5.0, 0.9, 0.7))
        assert np.allclose(volume.affine, affine[:, order], atol=1e-4)
        assert volume.shape == tuple(BODY.shape[axis] for axis in axes)


@pytest.mark.parametrize(
    ("plane", "axes", "spacing"),
    [
        ("axial", "zyx", (5, 0.9, 0.7)),
        ("coronal", "yzx", (0.9, 5, 0.7)),
        ("sagittal", "xzy", (0.7, 5, 0.9)),
    ],
)
def test_planes(tmp_path, plane, axes, spacing):
    volume = read_nifti(write(tmp_path / "a.nii"), plane)
    assert np.array_equal(volume.voxels, BODY.transpose(["xyz".index(axis) for axis in axes]))
    assert volume.spacing == pytest.approx(spacing)


def test_spacing_is_that_of_the_matrix_not_of_the_header(tmp_path):
    path = write(tmp_path / "a.nii", affine=tilted((1.5, 0.25, 3)))
    volume = read_nifti(patched(path, 80, "<3f", 9, 9, 9))
    assert volume.spacing == pytest.approx((3, 0.25, 1.5))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (BODY - np.int16(1024), np.int16),
        (BODY.astype(np.float64) - 1024, np.int16),
        (BODY.astype(np.int32) * 10, np.uint16),
        ((BODY > 5).astype(np.int64), np.uint8),
        (BODY.astype(np.float32) + 0.5, np.float32),
        (BODY.astype(np.int32) * 1000, np.float32),
    ],
)
def test_values_stay_and_the_type_is_the_smallest(tmp_path, values, dtype):
    image = nib.Nifti1Image(values, tilted(), dtype=values.dtype)
    nib.save(image, tmp_path / "a.nii.gz")
    voxels = read_nifti(tmp_path / "a.nii.gz").voxels
    assert voxels.dtype == dtype
    assert np.array_equal(voxels, values.transpose(2, 1, 0))


def test_scaled_integers_are_hounsfield_units(tmp_path):
    path = patched(write(tmp_path / "a.nii"), 112, "<2f", 2, -1024)
    voxels = read_nifti(path).voxels
    assert voxels.dtype == np.int16
    assert np.array_equal(voxels, 2 * BODY.transpose(2, 1, 0) - 1024)


def test_trailing_axes_of_one_are_dropped(tmp_path):
    volume = read_nifti(write(tmp_path / "a.nii.gz", BODY[..., None, None]))
    assert np.array_equal(volume.voxels, BODY.transpose(2, 1, 0))


NOISE = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)


def truncated(path):
    write(path, NOISE)
    path.write_bytes(path.read_bytes()[:-3000])


def wrong_sum(path):
    """The voxels unpack, but are not those that were packed."""
    write(path, NOISE)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)


def not_a_number(path):
    write(path, np.where(BODY == 0, np.nan, BODY).astype(np.float32))


def sheared(path):
    affine = tilted()
    affine[:3, 1] += 0.1 * affine[:3, 0]
    write(path, affine=affine)


def flat(path):
    """The second column of the matrix is zero."""
    plain = write(path.with_name("plain.nii"))
    for row in (280, 296, 312):
        patched(plain, row + 4, "<f", 0)
    path.write_bytes(gzip.compress(plain.read_bytes()))


def zero_size(path):
    """No matrix, and a voxel size of zero, which nibabel reads as 1 mm."""
    plain = path.with_name("plain.nii")
    patched(write(plain), 252, "<2h", 1, 0)
    patched(plain, 84, "<f", 0)
    path.write_bytes(gzip.compress(plain.read_bytes()))


def unknown_type(path):
    plain = path.with_name("plain.nii")
    patched(write(plain), 70, "<h", 1234)
    path.write_bytes(gzip.compress(plain.read_bytes()))


FAULTS = {
    "truncated": (truncated, "not a readable NIfTI file"),
    "wrong check sum": (wrong_sum, "not a readable NIfTI file (CRC check failed"),
    "text": (lambda path: path.write_text("hello"), "not a readable NIfTI file"),
    "packed text": (lambda path: path.write_bytes(gzip.compress(b"x")), "not a readable NIfTI"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable NIfTI file"),
    "missing": (lambda path: None, "not a readable NIfTI file"),
    "unknown type": (unknown_type, "not a readable NIfTI file"),
    "colours": (
        lambda path: write(path, np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "convert them to numbers",
    ),
    "four dimensions": (
        lambda path: write(path, np.stack([BODY, BODY], -1)),
        "2x3x4x2 voxels, not a volume of three dimensions",
    ),
    "one dimension": (lambda path: write(path, BODY[0, 0]), "4 voxels, not a volume"),
    "not a number": (not_a_number, "NaN or infinite voxels"),
    "beyond float32": (
        lambda path: write(path, np.full((2, 2, 2), 1e300)),
        "NaN or infinite voxels, or beyond",
    ),
    "sheared": (sheared, "not at right angles"),
    "an axis of no length": (flat, "voxel size that is zero"),
    "size of zero": (zero_size, "a voxel size of zero"),
}


def test_faults_are_named_with_their_file(tmp_path):
    def attempt(folder, edit):
        edit(folder / "scan ü.nii.gz")
        read_nifti(folder / "scan ü.nii.gz")

    check_all(FAULTS, attempt, tmp_path, lambda folder: f"{folder / 'scan ü.nii.gz'}: ")


def test_what_is_repaired_in_a_header_is_said_with_the_file(tmp_path, caplog, capfd):
    path = tmp_path / "scan.nii"
    patched(write(path, xyzt_units=2), 252, "<h", 99)  # qform_code
    assert read_nifti(path).shape == BODY.shape
    assert caplog.messages == [f"{path}: qform_code 99 not valid; setting to 0"]
    assert capfd.readouterr().err == ""


def test_too_many_voxels_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr("attnseg.data.readers.nifti.MAX_VOXELS", 23)
    with pytest.raises(DataError, match="2x3x4 voxels are too many"):
        read_nifti(write(tmp_path / "a.nii"))


def test_two_files_must_lie_in_one_place(tmp_path):
    first = write(tmp_path / "image.nii")
    moved, turned = tilted(), tilted(degrees=15.0001)
    moved[0, 3] += 0.08  # mm, more than a tenth of 0.7 mm
    for name, affine, voxels, message in (
        ("moved", moved, BODY, r"lies up to 0\.08 mm away from image\.nii"),
        ("cropped", tilted(), BODY[:, :2], r"2x2x4 voxels, but image\.nii has 2x3x4"),
    ):
        second = write(tmp_path / f"{name}.nii", voxels, affine)
        with pytest.raises(DataError, match=message):
            check_same_grid(read_nifti(first), read_nifti(second), (first, second))
    second = write(tmp_path / "turned.nii", affine=turned)  # as rounding does
    check_same_grid(read_nifti(first), read_nifti(second), (first, second))


def test_the_same_place_in_any_orientation_is_the_same(tmp_path):
    """A label map that another program has turned belongs to its image, voxel by voxel."""
    path = write(tmp_path / "image.nii")
    image = nib.load(path)
    first = read_nifti(path)
    for axes in permutations(range(3)):
        for flips in product((1, -1), repeat=3):
            turned = image.as_reoriented(np.column_stack((axes, flips)))
            second = tmp_path / "turned.nii"
            nib.save(turned, second)
            volume = read_nifti(second)
            check_same_grid(first, volume, (path, second))
            assert np.array_equal(volume.voxels, first.voxels)
            moved = turned.affine.copy()
            moved[:3, 3] += turned.affine[:3, 0]  # by one voxel
            nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), moved), second)
            with pytest.raises(DataError, match=r"away from image\.nii"):
                check_same_grid(first, read_nifti(second), (path, second))


def test_labels_get_their_meaning_and_others_are_named(tmp_path):
    meaning = {0: 0, 7: 2, 300: 1}
    labels = np.array([[300, 7], [0, 7]], np.uint16)
    assert map_labels(tmp_path, labels, meaning).tolist() == [[1, 2], [0, 2]]
    assert map_labels(tmp_path, labels.astype(np.float32), meaning).dtype == np.uint8
    with pytest.raises(DataError, match=r"unknown labels -1, 12 \(known are 0, 7, 300\)"):
        map_labels(tmp_path, np.array([0.0, -1, 12]), meaning)
    with pytest.raises(DataError, match=r"no whole numbers, such as 0\.5, nan \(soft labels"):
        map_labels(tmp_path, np.array([0, -1, 0.5, np.nan]), meaning)
