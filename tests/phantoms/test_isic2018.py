"""The ISIC 2018 phantom, read back here with Pillow alone."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from attnseg.phantoms.isic2018 import make_isic2018, make_picture
from tests.limits import at_most


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("isic") / "isic"
    make_isic2018(root, "tiny")
    return root


def test_folders_and_names_are_the_challenges(pictures):
    seen = []
    for role, count in (("Training", 12), ("Validation", 3), ("Test", 3)):
        inputs = pictures / f"ISIC2018_Task1-2_{role}_Input"
        truths = pictures / f"ISIC2018_Task1_{role}_GroundTruth"
        for folder in (inputs, truths):
            assert sorted(p.name for p in folder.glob("*.txt")) == [
                "ATTRIBUTION.txt",
                "LICENSE.txt",
            ]
        names = sorted(path.stem for path in inputs.glob("ISIC_???????.jpg"))
        masks = sorted(path.name for path in truths.glob("*.png"))
        assert len(names) == count
        assert masks == [f"{name}_segmentation.png" for name in names]
        seen += names
    assert len(list(pictures.rglob("*.*"))) == 2 * 18 + 2 * 6 + 1  # and phantom.json
    assert "ISIC_0000000" in seen
    assert len(set(seen)) == 18  # no name in two roles


def test_a_mask_is_one_piece_of_0_and_255_the_size_of_its_image(pictures):
    sizes = set()
    for path in sorted(pictures.glob("*_Input/*.jpg")):
        truth = path.parent.name.replace("Task1-2", "Task1").replace("Input", "GroundTruth")
        with (
            Image.open(path) as image,
            Image.open(pictures / truth / f"{path.stem}_segmentation.png") as mask,
        ):
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert (mask.format, mask.mode) == ("PNG", "L")
            assert image.size == mask.size
            assert set(np.unique(np.asarray(mask))) == {0, 255}
            assert ndimage.label(np.asarray(mask), np.ones((3, 3)))[1] == 1
            sizes.add(image.size)
    assert sizes == {(72, 56), (76, 60), (60, 52), (64, 48)}


def test_the_lesion_is_one_piece_darker_than_the_skin_around_it():
    violations = []
    for number in range(0, 90, 3):
        image, mask = make_picture(0, number, (100, 75))
        wide, narrow = (ndimage.binary_dilation(mask, iterations=width) for width in (8, 3))
        grey, near = image.mean(-1), wide & ~narrow
        red, green, blue = np.median(image[near], axis=0)
        held = {
            "one piece": ndimage.label(mask, np.ones((3, 3)))[1] == 1,
            "size": 0.02 < mask.mean() < 0.7,
            "darker": np.median(grey[mask]) < 0.85 * np.median(grey[near]),
            "skin colours": red > green > blue,
        }
        violations += [f"picture {number}: {name}" for name, holds in held.items() if not holds]
    assert violations == []


def test_no_two_pictures_are_alike():
    frames = [make_picture(0, number, (72, 56)) for number in range(6)]
    assert len({mask.sum() for _, mask in frames}) == 6
    tones = [image[~mask].mean() for image, mask in frames]
    assert np.ptp(tones) > 10


def test_presets_are_made_in_time(tmp_path):
    with at_most(seconds=2):
        make_isic2018(tmp_path / "tiny", "tiny")
    with at_most(seconds=20):
        make_isic2018(tmp_path / "demo", "demo")
    counts = [len(list(path.glob("*.jpg"))) for path in sorted((tmp_path / "demo").glob("*_Input"))]
    assert counts == [20, 60, 10]  # Test, Training, Validation
