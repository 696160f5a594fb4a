"""Masks lie on the voxels they were made of, whatever the file's axes, spacing and kind."""

import json
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import io_orientation
from PIL import Image

from attnseg.data.readers.nifti import from_slices, read_nifti, to_slices
from attnseg.errors import DataError
from attnseg.prediction.spec import InferenceSpec
from tests.prediction.made import TILTED, Threshold, organ, reoriented, segment, spec

ALL = ["".join(p) for pairs in product("RL", "AP", "SI") for p in permutations(pairs)]
PLANES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}


def test_there_are_48_orientations():
    assert len(set(ALL)) == 48


@pytest.mark.parametrize("axes", ALL)
def test_slices_go_back_to_where_they_came_from(axes):
    image = reoriented(organ(), TILTED, axes)
    voxels = np.asarray(image.dataobj)
    for plane in PLANES:
        slices, spacing = to_slices(voxels, image.affine, plane)
        assert np.array_equal(from_slices(slices, image.affine, plane), voxels)
        assert sorted(spacing) == pytest.approx([0.7, 1.3, 5.0])
        several = np.stack([slices, slices + 1], -1)
        assert np.array_equal(from_slices(several, image.affine, plane)[..., 1], voxels + 1)


@pytest.mark.parametrize("axes", ALL)
def test_a_threshold_gives_the_truth_in_space(tmp_path, axes):
    """Dice 1.0 at native resolution, and the network sees the same whatever the file's axes."""
    truth = organ()
    image = reoriented(truth, TILTED, axes)
    image.set_sform(image.affine, 2)
    image.set_qform(image.affine, 1)
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in/scan.nii.gz")
    # Three times the slices' own size: exact at the middle of each pixel.
    network = segment(tmp_path / "in", tmp_path / "out", wanted={"overlays": False}, size=(24, 30))
    mask = nib.load(tmp_path / "out/masks/scan.nii.gz")
    assert mask.shape == image.shape
    assert np.array_equal(mask.affine, nib.load(tmp_path / "in/scan.nii.gz").affine)
    assert [int(mask.header[f"{form}_code"]) for form in ("sform", "qform")] == [2, 1]
    assert np.allclose(mask.header.get_zooms(), image.header.get_zooms())
    back = mask.as_reoriented(
        nib.orientations.ornt_transform(io_orientation(mask.affine), io_orientation(TILTED))
    )
    assert np.array_equal(np.asarray(back.dataobj), truth > 100)
    assert np.allclose(back.affine, TILTED, atol=1e-4)
    # Rows from front to back, columns from right to left, slices from the feet up.
    expected = truth[::-1, ::-1].transpose(2, 1, 0)
    seen = np.concatenate(network.seen)[:, 0, 1::3, 1::3]
    assert np.allclose((seen + 1) * 100, expected, atol=1e-3)


@pytest.mark.parametrize("plane", PLANES)
def test_every_plane_of_the_slices(tmp_path, plane):
    truth = organ((9, 12, 6))
    nib.save(reoriented(truth, TILTED, "PIR"), tmp_path / "scan.nii")
    size = tuple(3 * truth.shape[axis] for axis in PLANES[plane][::-1])
    segment(tmp_path / "scan.nii", tmp_path / "out", plane=plane, size=size)
    image = nib.load(tmp_path / "scan.nii")
    mask = nib.load(tmp_path / "out/masks/scan.nii")
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(image.dataobj) > 100)


def test_a_resized_image_comes_back_at_its_own_size(tmp_path):
    """A ball that is seen at another size and shape: no shift by half a pixel either way."""
    grid = np.stack(np.meshgrid(*map(np.arange, (60, 50, 5)), indexing="ij"), -1)
    ball = np.linalg.norm((grid - (28, 22, 2)) * (1, 1, 4), axis=-1) < 15
    nib.save(nib.Nifti1Image(ball.astype(np.int16) * 200, TILTED), tmp_path / "ball.nii.gz")
    segment(tmp_path / "ball.nii.gz", tmp_path / "out", size=(64, 96))
    mask = np.asarray(nib.load(tmp_path / "out/masks/ball.nii.gz").dataobj) > 0
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.99
    centre, moved = (np.array(np.nonzero(m)).mean(1) for m in (ball, mask))
    assert np.abs(centre - moved).max() < 0.02


def test_classes_that_exclude_each_other_are_one_label_map(tmp_path):
    truth = organ()
    nib.save(nib.Nifti1Image(truth, TILTED), tmp_path / "a.nii.gz")
    classes = {"classes": ("bright", "dark"), "multilabel": False}
    segment(tmp_path / "a.nii.gz", tmp_path / "out", **classes)
    mask = nib.load(tmp_path / "out/masks/a.nii.gz")
    labels = np.asarray(mask.dataobj)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels == 1, truth > 100)
    assert np.array_equal(labels == 2, truth < 20)
    (extension,) = mask.header.extensions
    described = json.loads(extension.get_content().rstrip(b"\0"))
    assert described["labels"] == {"1": "bright", "2": "dark"}
    assert mask.header.get_intent()[0] == "label"


def test_classes_that_overlap_are_a_volume_each(tmp_path):
    truth = organ()
    nib.save(nib.Nifti2Image(truth, TILTED), tmp_path / "a.nii")
    segment(tmp_path / "a.nii", tmp_path / "out", classes=("bright", "dark"))
    mask = nib.load(tmp_path / "out/masks/a.nii")
    assert isinstance(mask, nib.Nifti2Image)
    assert mask.shape == (*truth.shape, 2)
    assert np.array_equal(np.asarray(mask.dataobj)[..., 1], truth < 20)
    (extension,) = mask.header.extensions
    assert json.loads(extension.get_content().rstrip(b"\0"))["volumes"]["1"] == "dark"


def test_nothing_of_the_original_header_but_its_geometry_stays(tmp_path):
    image = nib.Nifti1Image(organ(), TILTED)
    image.header["cal_max"] = 77
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"name of a patient"))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "a.nii.gz")
    segment(tmp_path / "a.nii.gz", tmp_path / "out")
    header = nib.load(tmp_path / "out/masks/a.nii.gz").header
    assert float(header["cal_max"]) == 0
    assert not any(b"patient" in e.get_content() for e in header.extensions)
    assert header.get_xyzt_units() == ("mm", "sec")


def test_channels_of_one_file_and_of_several_are_the_same(tmp_path):
    first, second = organ(seed=1), organ(seed=2)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    together = np.stack([first, second], -1)
    nib.save(nib.Nifti1Image(together, TILTED), tmp_path / "one/a.nii.gz")
    for number, channel in enumerate((first, second)):
        nib.save(nib.Nifti1Image(channel, TILTED), tmp_path / f"two/a_000{number}.nii.gz")
    seen = []
    for folder in ("one", "two"):
        network = segment(tmp_path / folder, tmp_path / f"out-{folder}", channels=2)
        seen.append(np.concatenate(network.seen))
        mask = nib.load(tmp_path / f"out-{folder}/masks/a.nii.gz")
        assert np.array_equal(np.asarray(mask.dataobj), second > 100)
    assert seen[0].shape[1] == 2
    assert np.array_equal(*seen)
    assert read_nifti(tmp_path / "one/a.nii.gz", channels=2).shape == first.shape


def test_channels_with_a_gap_or_twice_are_refused(tmp_path):
    """The channel behind a gap would be taken for the one that is missing."""
    for name in ("a_0000.nii", "a_0002.nii", "b_0000.nii", "b_0000.nii.gz", "b_0001.nii"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(organ(seed=len(name)), TILTED), path)
    with pytest.raises(DataError, match="2 problems, listed above; 1 others are done"):
        segment(tmp_path / "in", tmp_path / "out", channels=2)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert sorted(line.split(";")[0] for line in manifest["failed"]) == [
        f"{tmp_path}/in/a_0000.nii: its image has the channels 0000, 0002, with a gap",
        f"{tmp_path}/in/b_0000.nii.gz: b_0000.nii is the same channel",
    ]
    (tmp_path / "in/b_0001.nii").unlink()
    network = segment(tmp_path / "in/b_0000.nii", tmp_path / "one")
    assert network.seen
    for name in ("a_0000.nii", "a_0002.nii"):
        (tmp_path / "in" / name).unlink()
    segment(tmp_path / "in", tmp_path / "both")
    masks = {path.name: nib.load(path).get_fdata() for path in (tmp_path / "both/masks").iterdir()}
    assert set(masks) == {"b_nii.nii", "b_nii_gz.nii.gz"}
    for name in ("b_0000.nii", "b_0000.nii.gz"):
        expected = organ(seed=len(name)) > 100
        assert np.array_equal(masks[f"b{name[6:].replace('.', '_')}{name[6:]}"], expected)


def test_neighbours_are_seen_in_their_order(tmp_path):
    image = np.zeros((10, 8, 5), np.int16) + np.arange(5, dtype=np.int16) * 40
    nib.save(nib.Nifti1Image(image, TILTED), tmp_path / "a.nii.gz")
    made = spec(slices=3, stride=2)
    network = Threshold(made)
    segment(tmp_path / "a.nii.gz", tmp_path / "out", network, slices=3, stride=2)
    levels = ((np.concatenate(network.seen)[:, :, 5, 5] + 1) * 100 / 40).round()
    assert levels.tolist() == [[0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 4], [2, 4, 4]]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_picture_becomes_a_label_map_of_its_size(tmp_path, suffix):
    pixels = organ((20, 31)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    classes = {"classes": ("bright", "därk"), "multilabel": False, "volumetric": False}
    segment(tmp_path / f"a{suffix}", tmp_path / "out", size=(60, 93), **classes)
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert json.loads(mask.text["Description"])["labels"] == {"1": "bright", "2": "därk"}
        assert np.array_equal(np.array(mask), 1 * (pixels > 100) + 2 * (pixels < 20))


def test_a_colour_picture_and_classes_that_overlap(tmp_path):
    pixels = organ((20, 31, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    classes = {"classes": ("bright", "not/bright"), "volumetric": False, "channels": 3}
    segment(tmp_path / "a.png", tmp_path / "out", size=(60, 93), **classes)
    assert sorted(path.name for path in (tmp_path / "out/masks").iterdir()) == [
        "a.bright.png", "a.not%2Fbright.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "out/masks/a.bright.png") as mask:
        assert np.array_equal(np.array(mask), 255 * (pixels[..., 1] > 100))


def test_a_spec_comes_back_from_its_text():
    made = spec(window=None, spacing=((1, 2, 3.5), (1, 2, 4.0)))
    assert InferenceSpec.from_json(made.to_json()) == made
