"""Phantom that only far context solves: the liver's side decides the class of the hips.

The pictures are coronal. At the top, the liver lies on the left of the picture, which is the
patient's right (situs solitus), or on its right (situs inversus). At the bottom lie two equal hips;
both are labelled `solitus` or `inversus`. At least half of the picture's height lies between.

    dataset.json
    imagesTr/P0001_a_0000.png, labelsTr/P0001_a.png
    imagesTr/P0001_b_0000.png, labelsTr/P0001_b.png

A patient has two pictures, one of each situs: the upper half of `b` is that of `a`, mirrored. Their
lower halves are equal pixel by pixel, and their intensities have the same histogram. So a network
whose output at the hips depends on nothing but the lower half, positions and statistics of the
intensities predicts the same for both.

Chance: let such a network call shares a and b of the hips solitus and inversus, a + b <= 1. Its
Dice of solitus is 2a / (1 + a) for one picture and 0 for the other, on average a / (1 + a); that of
inversus is b / (1 + b). The mean over both classes is at most 1/3, reached by a = b = 1/2. The same
class everywhere scores 1/4. Ceiling: 1, but for pixels at the edges of the hips.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from attnseg.phantoms.body import Drawing, union
from attnseg.phantoms.phantom import make_preset, save_picture, write_description
from attnseg.progress import track

CLASSES = ("solitus", "inversus")


@dataclass(frozen=True)
class SitusSpec:
    """Number and size of the pictures.

    Attributes:
        patients: number of patients, with two pictures each.
        side: height and width, pixels.
        seed: another seed gives other patients.
    """

    patients: int
    side: int
    seed: int = 0


SITUS_PRESETS = {"tiny": SitusSpec(12, 64), "demo": SitusSpec(500, 128)}


def make_situs(root: Path, preset: str = "demo", seed: int = 0) -> None:
    """Write the phantom in nnU-Net's raw format to `root`; see `make_preset`."""
    make_preset(root, SITUS_PRESETS, preset, seed, _write_situs)


class Trunk(Drawing):
    """A coronal slice of one patient, from the hips to the liver; a single row along y.

    All but liver, stomach and bowel is symmetric about x = 0, so that half of it can be mirrored.

    Args:
        rng: draws the anatomy, the textures and the noise.
        side: pixels along x and z.
        liver: side of the liver in the picture, -1 for left and 1 for right.
    """

    HEIGHT = 410.0

    def __init__(self, rng: Generator, side: int, liver: int) -> None:
        super().__init__(rng, (side, 1, side), self.HEIGHT / side)
        girth = rng.uniform(0.85, 1.1)
        self.skin = self._ellipsoid((0, 0, 100), (158 * girth, 100, 800))
        self.cavity = self._ellipsoid((0, 0, 220), (130 * girth, 80, 500))
        self.spine = self._ellipsoid((0, 0, 205), (22 * girth, 20, 1e4))
        x, y, z = rng.uniform(-10, 10, 3)
        self.liver = self._ellipsoid(
            (liver * (62 * girth + x), 0, 365 + z), (64 * girth, 60, rng.uniform(50, 60))
        )
        self.stomach = self._ellipsoid(
            (-liver * (66 * girth + y), 0, 370 + z), (34, 40, rng.uniform(36, 46))
        )
        x, z, radius = rng.uniform(-8, 8), rng.uniform(44, 56), rng.uniform(26, 31)
        self.hips = union(
            *(
                self._ellipsoid((hip * (92 * girth + x), 0, z), (radius, radius, radius))
                for hip in (-1, 1)
            )
        )
        loops = rng.uniform((-80 * girth, 0, 120), (80 * girth, 0, 180), (7, 3))
        self.bowel = self._tube(list(map(tuple, loops)), rng.uniform(9, 13, 7))

    def picture(self) -> NDArray[np.uint8]:
        """Return the picture `[H, W]`, head up."""
        image = self.paint(
            0.02,
            (
                (self.skin, 0.55, 0.05),
                (self.cavity, 0.32, 0.08),
                (self.spine, 0.45, 0.05),
                (self.bowel, 0.45, 0.08),
                (self.stomach, 0.12, 0.04),
                (self.liver, 0.75, 0.04),
                (self.hips, 0.85, 0.04),
            ),
        )
        noise = self.today.normal(0, 0.03, (2, *self.shape))
        magnitude = np.hypot(image + noise[0], noise[1]) * self.today.uniform(150, 220)
        return np.asarray(np.clip(magnitude[::-1, 0], 0, 255), np.uint8)


def make_pair(
    seed: int, patient: int, side: int
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Draw the two pictures of a patient, numbered from 0, with their label maps, `[H, W]` each."""
    rng = default_rng([seed, patient])
    # The first picture is of either situs, so that no trace of the mirroring tells the situs.
    situs = int(rng.integers(2))
    trunk = Trunk(rng, side, (-1, 1)[situs])
    picture = trunk.picture()
    mirrored = picture.copy()
    upper = slice(0, side // 2)
    mirrored[upper] = picture[upper, ::-1]
    labels = [trunk.label_map((1 + each, trunk.hips))[::-1, 0] for each in (situs, 1 - situs)]
    return list(zip((picture, mirrored), labels, strict=True))


def _write_situs(spec: SitusSpec, root: Path) -> None:
    for patient in track(range(spec.patients), "Making the phantom", "patients"):
        pair = make_pair(spec.seed, patient, spec.side)
        for letter, (picture, label) in zip("ab", pair, strict=True):
            save_picture(root, "Tr", f"P{patient + 1:04d}_{letter}", picture, label)
    write_description(root, CLASSES, 2 * spec.patients)
