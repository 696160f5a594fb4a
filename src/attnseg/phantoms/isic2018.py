"""Phantom of ISIC 2018 Task 1: synthetic dermoscopy in the same files and layout.

It has the six folders of the challenge (https://challenge.isic-archive.com/landing/2018/45/):

    ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
    ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png

and likewise for Validation and Test. A picture shows skin with one lesion: an irregular patch in
several browns, with a pigment network and globules. Hairs, gel bubbles, a ruler or black corners
cover parts of some pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from attnseg.data.parallel import work_in_parallel
from attnseg.phantoms.body import Field
from attnseg.phantoms.cheap import draw_cheap_photograph
from attnseg.phantoms.phantom import make_preset

FOLDER_ROLES = ("Training", "Validation", "Test")
JPEG_QUALITY = 92
OVERSAMPLING = 3  # lines are drawn at this multiple of the size, for smooth edges
NOTICE = "Made-up pictures: drawn by a program, of nobody's skin. No rights are reserved.\n"

Colour = tuple[float, float, float]  # red, green, blue from 0 to 1


@dataclass(frozen=True)
class IsicSpec:
    """Number and size of the synthetic pictures.

    Attributes:
        counts: number of pictures for training, validation and test.
        frames: width and height, pixels; pictures use them in turn.
        seed: another seed gives other pictures.
    """

    counts: tuple[int, int, int]
    frames: tuple[tuple[int, int], ...]
    seed: int = 0


class PublishedPictures(IsicSpec):
    """Numbers of the published dataset, drawn cheaply."""


ISIC2018_PRESETS = {
    "tiny": IsicSpec((12, 3, 3), ((72, 56), (76, 60), (60, 52), (64, 48))),
    "demo": IsicSpec((60, 10, 20), ((200, 150), (192, 144), (216, 160), (180, 152))),
    # The counts are published; sizes from 0.8 to 6 megapixels are assumed.
    "published": PublishedPictures((2594, 100, 1000), ((1022, 767), (2048, 1536), (3008, 2000))),
}


def make_isic2018(root: Path, preset: str = "demo", seed: int = 0) -> None:
    """Write a phantom of ISIC 2018 Task 1 to `root`; see `make_preset`."""
    make_preset(root, ISIC2018_PRESETS, preset, seed, _write_isic2018)


def _write_isic2018(spec: IsicSpec, root: Path) -> None:
    inputs = {role: root / f"ISIC2018_Task1-2_{role}_Input" for role in FOLDER_ROLES}
    truths = {role: root / f"ISIC2018_Task1_{role}_GroundTruth" for role in FOLDER_ROLES}
    for folder in (*inputs.values(), *truths.values()):
        folder.mkdir()
        for name in ("ATTRIBUTION.txt", "LICENSE.txt"):
            (folder / name).write_text(NOTICE)
    roles = [
        role for role, count in zip(FOLDER_ROLES, spec.counts, strict=True) for _ in range(count)
    ]

    def write_picture(number: int) -> None:
        frame = spec.frames[number % len(spec.frames)]
        if isinstance(spec, PublishedPictures):
            image, mask = draw_cheap_photograph(default_rng([spec.seed, number]), frame)
        else:
            image, mask = make_picture(spec.seed, number, frame)
        name = f"ISIC_{3 * number:07d}"  # The download's numbers have gaps, too.
        role = roles[number]
        Image.fromarray(image).save(inputs[role] / f"{name}.jpg", quality=JPEG_QUALITY)
        white = mask.astype(np.uint8) * 255
        Image.fromarray(white).save(truths[role] / f"{name}_segmentation.png")

    numbers = range(len(roles))
    work_in_parallel(write_picture, numbers, "Making the phantom", "pictures", root)


def make_picture(
    seed: int, number: int, frame: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one picture; `frame` is its width and height in pixels.

    Returns:
        Image `[H, W, 3]` and the lesion's mask `[H, W]`, a single component.
    """
    rng = default_rng([seed, number])
    canvas = _Canvas(rng, frame)
    edge = canvas.lesion()
    canvas.draw_skin()
    canvas.draw_pigment(edge)
    for draw_artefact, probability in (
        (canvas.draw_bubbles, 0.3),
        (canvas.draw_hairs, 0.55),
        (canvas.draw_ruler, 0.2),
        (canvas.draw_corners, 0.3),
    ):
        if rng.random() < probability:
            draw_artefact()
    return canvas.finished(), edge < 0


class _Canvas:
    """A picture that is being drawn.

    x and y are measured from the middle, in units of half the picture's shorter side.
    """

    def __init__(self, rng: Generator, frame: tuple[int, int]) -> None:
        self.rng = rng
        self.width, self.height = frame
        self.unit = min(frame) / 2  # pixels
        self.x = ((np.arange(self.width) - (self.width - 1) / 2) / self.unit)[None, :]
        self.y = ((np.arange(self.height) - (self.height - 1) / 2) / self.unit)[:, None]
        self.image = np.zeros((self.height, self.width, 3))

    def lesion(self) -> Field:
        """Return the signed distance of each pixel to the lesion (negative inside), in units.

        The border is a function of the angle around a point within, so that the lesion is a single
        component.
        """
        rng = self.rng
        middle = rng.normal(0, 0.12, 2)
        radius, stretch = rng.uniform(0.3, 0.72), rng.uniform(1.0, 1.45)
        turn = rng.uniform(0, np.pi)
        dx, dy = self.x - middle[0], self.y - middle[1]
        along = (dx * np.cos(turn) + dy * np.sin(turn)) / np.sqrt(stretch)
        across = (dy * np.cos(turn) - dx * np.sin(turn)) * np.sqrt(stretch)
        angle = np.arctan2(across, along)
        border = np.ones_like(angle)
        for wave in range(1, 9):
            size = rng.normal(0, 0.16 / wave)
            border += size * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
        return np.asarray(np.hypot(along, across) - radius * np.clip(border, 0.4, 1.6))

    def draw_skin(self) -> None:
        """Draw skin of one tone, with blotches, fine furrows and light from one side."""
        rng = self.rng
        light, dark = np.array([0.93, 0.76, 0.70]), np.array([0.72, 0.50, 0.40])
        tone = light + rng.beta(1.2, 2.2) * (dark - light) + rng.normal(0, 0.015, 3)
        self.image[:] = tone
        red = np.array([0.25, 1.0, 0.9])  # Blotches absorb green and blue, which makes them redder.
        self.image -= 0.022 * self.noise(0.22)[..., None] * red
        furrows = np.abs(self.noise(0.05)) + np.abs(self.noise(0.03))
        self.image *= (0.975 + 0.02 * np.minimum(furrows, 2))[..., None]
        a, b = rng.normal(0, 0.06, 2)
        shade = 1 + a * self.x + b * self.y - rng.uniform(0.02, 0.09) * (self.x**2 + self.y**2)
        self.image *= shade[..., None]

    def draw_pigment(self, edge: Field) -> None:
        """Colour the lesion in several browns, with a network of lines and with globules."""
        rng = self.rng
        soft = rng.uniform(0.02, 0.07)
        inside = 1 / (1 + np.exp(np.clip((edge + 0.4 * soft) / (0.4 * soft), -50, 50)))
        depth = rng.uniform(0.25, 0.75) + 0.28 * self.noise(0.22) + 0.1 * self.noise(0.08)
        depth += np.clip(-edge, 0, 0.4)  # The lesion is darker towards its middle.
        # From tan over brown to black.
        stops = np.array([[0.66, 0.45, 0.32], [0.42, 0.25, 0.17], [0.20, 0.12, 0.11]])
        colour = np.stack([np.interp(depth, (0.1, 0.75, 1.5), stops[:, c]) for c in range(3)], -1)
        if rng.random() < 0.35:
            veil = np.clip(self.noise(0.2) - 0.6, 0, 1)[..., None]  # bluish-white veil
            colour += 0.5 * veil * (np.array([0.52, 0.52, 0.58]) - colour)
        self._stain(colour, inside * rng.uniform(0.65, 0.95))
        self._stain([0.25, 0.14, 0.10], inside * self._network(rng.uniform(0.05, 0.08)) * 0.35)
        self._stain([0.17, 0.09, 0.08], inside * self._globules() * 0.6)

    def _network(self, mesh: float) -> Field:
        """Return the lines between cells of about `mesh` units, stronger in some patches."""
        count = int(4 * self.width * self.height / (2 * self.unit) ** 2 / mesh**2)
        rows = self.rng.integers(0, self.height, count)
        columns = self.rng.integers(0, self.width, count)
        holes = np.ones((self.height, self.width))
        holes[rows, columns] = 0
        far = ndimage.distance_transform_edt(holes) / self.unit
        lines = ndimage.gaussian_filter(np.clip(far / mesh - 0.45, 0, 0.4) / 0.4, 0.5)
        return np.asarray(lines * np.clip(0.5 + 0.8 * self.noise(0.25), 0, 1))

    def _globules(self) -> Field:
        """Return dots that are scattered over one part of the picture."""
        dots = np.zeros((self.height, self.width))
        middle = self.rng.normal(0, 0.2, 2)
        for _ in range(self.rng.integers(0, 26)):
            x, y = middle + self.rng.normal(0, 0.22, 2)
            radius = self.rng.uniform(0.015, 0.035)
            far = np.hypot(self.x - x, self.y - y)
            dots = np.maximum(dots, np.clip(0.5 - (far - radius) * self.unit, 0, 1))
        return dots

    def draw_bubbles(self) -> None:
        """Draw gel bubbles: bright rims with a glint."""
        for _ in range(self.rng.integers(2, 9)):
            x = self.rng.uniform(self.x.min(), self.x.max())
            y = self.rng.uniform(-1, 1)
            radius = self.rng.uniform(0.03, 0.1)
            far = np.hypot(self.x - x, self.y - y)
            width = max(0.012, 0.6 / self.unit)
            rim = np.exp(-(((far - radius) / width) ** 2))
            glint = np.hypot(self.x - x + 0.4 * radius, self.y - y + 0.4 * radius)
            self._stain([1, 0.97, 0.95], 0.3 * rim)
            self._stain([1, 1, 1], 0.8 * np.exp(-((glint / width) ** 2)))

    def draw_hairs(self) -> None:
        """Draw dark curved hairs, most of them in one direction."""
        rng = self.rng
        colour: Colour = (0.10, 0.07, 0.06) if rng.random() < 0.8 else (0.45, 0.31, 0.20)
        way = rng.uniform(0, np.pi)
        strands = []
        for _ in range(rng.integers(4, 22)):
            turn = way + rng.normal(0, 0.4)
            ahead = np.array([np.cos(turn), np.sin(turn)]) * rng.uniform(0.3, 1.1)
            aside = np.array([-ahead[1], ahead[0]]) * rng.normal(0, 0.3)
            middle = rng.uniform(-1.1, 1.1, 2)
            strands.append(_curve(middle - ahead, middle + aside, middle + ahead))
        self._strokes(strands, max(0.012, 0.5 / self.unit), colour, rng.uniform(0.6, 0.9))

    def draw_ruler(self) -> None:
        """Draw a ruler along the lower edge."""
        bottom = self.y.max() - 0.04
        step = self.rng.uniform(0.06, 0.1)
        marks = []
        for index, x in enumerate(np.arange(self.x.min() + 0.05, self.x.max(), step)):
            tall = 0.17 if index % 5 == 0 else 0.09
            marks.append(np.array([[x, bottom], [x, bottom - tall]]))
        self._strokes(marks, max(0.012, 0.5 / self.unit), (0.1, 0.1, 0.12), 0.8)

    def draw_corners(self) -> None:
        """Blacken the corners outside the round lens of the dermatoscope."""
        radius = self.rng.uniform(1.05, 1.2)
        far = np.hypot(self.x, self.y)
        self.image *= (1 - 0.35 * np.clip((far - 0.75 * radius) / radius, 0, 1))[..., None]
        self._stain([0.02, 0.02, 0.03], np.clip((far - radius) * self.unit / 2 + 0.5, 0, 1))

    def finished(self) -> NDArray[np.uint8]:
        """Return the picture, slightly blurred and grainy."""
        blurred = ndimage.gaussian_filter(self.image, (0.4, 0.4, 0))
        grainy = blurred + self.rng.normal(0, 0.008, self.image.shape)
        return np.asarray(np.rint(np.clip(grainy, 0, 1) * 255), np.uint8)

    def noise(self, size: float) -> Field:
        """Return noise `[H, W]` of standard deviation 1, in patches of about `size` units."""
        white = self.rng.standard_normal((self.height, self.width))
        smooth = ndimage.gaussian_filter(white, size * self.unit / 2)
        return np.asarray(smooth / smooth.std())

    def _stain(self, colour: Sequence[float] | Field, opacity: Field) -> None:
        """Blend a colour into the picture with an opacity `[H, W]`."""
        self.image += opacity[..., None] * (np.asarray(colour) - self.image)

    def _strokes(
        self, lines: Sequence[Field], width: float, colour: Colour, opacity: float
    ) -> None:
        """Draw lines of points `[n, 2]` (x, y) with smooth edges."""
        sheet = Image.new("L", (self.width * OVERSAMPLING, self.height * OVERSAMPLING))
        pen = ImageDraw.Draw(sheet)
        corner = np.array([self.x.min(), self.y.min()])
        for line in lines:
            points = ((line - corner) * self.unit + 0.5) * OVERSAMPLING
            pen.line(points.ravel().tolist(), 255, max(1, round(width * self.unit * OVERSAMPLING)))
        small = np.asarray(sheet.resize((self.width, self.height), Image.Resampling.BOX))
        self._stain(colour, small / 255 * opacity)


def _curve(start: Field, control: Field, end: Field) -> Field:
    """Return 24 points `[24, 2]` of a quadratic Bezier curve."""
    t = np.linspace(0, 1, 24)[:, None]
    return np.asarray((1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end)
