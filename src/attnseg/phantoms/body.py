"""A synthetic abdomen as signed distance fields, from which the phantoms of scans are drawn."""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float64]
Point = tuple[float, float, float]
Tissue = tuple[Field, float, float]  # signed distance, mean grey value, strength of the texture
Wall = tuple[Field, float]  # signed distance of the organ, grey value of its wall

# Maps organ number, x, y (mm) and z (share of the height) of the average patient to a point, mm.
Place = Callable[[int, float, float, float], Point]


class Drawing:
    """Signed distances in mm (negative inside) on the voxels of a scan, painted to a picture.

    x runs to the patient's left and y to the back, both in mm from the middle. z runs up from the
    feet; all slices together span the height.

    Args:
        today: draws textures and noise.
        shape: slices, height, width.
        spacing: pixel size within slices, mm.
        shift: position of the patient's middle, mm along x and y.
    """

    HEIGHT = 260.0  # of the drawn part of the body, mm

    def __init__(
        self,
        today: Generator,
        shape: tuple[int, int, int],
        spacing: float,
        shift: Sequence[float] | Field = (0.0, 0.0),
    ) -> None:
        self.today = today
        self.shape = shape
        slices, height, width = shape
        self.x = (np.arange(width) - (width - 1) / 2) * spacing - shift[0]
        self.y = (np.arange(height) - (height - 1) / 2) * spacing - shift[1]
        self.z = (np.arange(slices) + 0.5) / slices * self.HEIGHT
        self.spacing = spacing

    @property
    def axes(self) -> tuple[Field, Field, Field]:
        """The coordinates x, y and z, each along its axis of an array `[S, H, W]`."""
        return self.x[None, None, :], self.y[None, :, None], self.z[:, None, None]

    def label_map(self, *organs: tuple[int, Field]) -> NDArray[np.uint8]:
        """Return the label map `[S, H, W]` of numbered organs; later ones cover earlier ones."""
        labels = np.zeros(self.shape, np.uint8)
        for number, organ in organs:
            labels[organ < 0] = number
        return labels

    def _ellipsoid(self, centre: Point, radii: Point) -> Field:
        x, y, z = ((axis - c) / r for axis, c, r in zip(self.axes, centre, radii, strict=True))
        squared = x**2 + y**2 + z**2
        return np.asarray((np.sqrt(squared) - 1) * min(radii))

    def _tube(self, points: list[Point], radii: Iterable[float]) -> Field:
        """Return the distance to a tube along a line of points, evaluated near the tube only."""
        field = np.full(self.shape, np.inf)
        margin = 8.0  # mm around the tube in which soft edges need the distance
        ends = list(zip(np.array(points), radii, strict=True))
        for (a, radius_a), (b, radius_b) in pairwise(ends):
            reach = max(radius_a, radius_b) + margin
            low, high = np.minimum(a, b) - reach, np.maximum(a, b) + reach
            sx, sy, sz = (
                slice(*np.searchsorted(axis, (low[i], high[i])))
                for i, axis in enumerate((self.x, self.y, self.z))
            )
            x, y, z = self.x[None, None, sx], self.y[None, sy, None], self.z[sz, None, None]
            d = b - a
            along = ((x - a[0]) * d[0] + (y - a[1]) * d[1] + (z - a[2]) * d[2]) / max(d @ d, 1e-9)
            along = np.clip(along, 0, 1)
            squared = (x - a[0] - along * d[0]) ** 2 + (y - a[1] - along * d[1]) ** 2
            squared += (z - a[2] - along * d[2]) ** 2
            distance = np.sqrt(squared) - (radius_a + along * (radius_b - radius_a))
            field[sz, sy, sx] = np.minimum(field[sz, sy, sx], distance)
        return field

    def mr(self, tissues: Iterable[Tissue], walls: Iterable[Wall] = ()) -> NDArray[np.uint16]:
        """Return an MR-like image `[S, H, W]`, 16-bit, from grey values between 0 and 1."""
        image = self.paint(0.02, tissues)
        for field, wall in walls:
            image += np.clip(1 - np.abs(field + 2) / 2.5, 0, 1) * 0.7 * (wall - image)
        image = ndimage.gaussian_filter(image, (0, 0.5, 0.5)) * self._bias()
        noise = self.today.normal(0, 0.03, (2, *self.shape))
        magnitude = np.sqrt((image + noise[0]) ** 2 + noise[1] ** 2)  # Rician
        brightness = self.today.uniform(900, 2400)
        return np.asarray(np.clip(magnitude * brightness, 0, 65535), np.uint16)

    def paint(self, air: float, tissues: Iterable[Tissue]) -> Field:
        """Return a picture `[S, H, W]` of tissues, painted one over the other on `air`."""
        image = np.full(self.shape, air)
        for field, value, texture in tissues:
            grain = ndimage.gaussian_filter(self.today.standard_normal(self.shape), (0.6, 1.2, 1.2))
            inside = np.clip(0.5 - field / self.spacing, 0, 1)  # partial volume effect at the edge
            image += inside * (value + 2.0 * texture * grain - image)
        return image

    def smooth_noise(self, rng: Generator, slices: float, width_mm: float) -> Field:
        """Return noise of standard deviation 1, smoothed over slices and within them."""
        widths = (slices, width_mm / self.spacing, width_mm / self.spacing)
        noise = ndimage.gaussian_filter(rng.standard_normal(self.shape), widths)
        return np.asarray(noise / noise.std())

    def _bias(self) -> Field:
        """Return a smooth multiplicative bias field."""
        x, y = self.axes[0] / 150, self.axes[1] / 110
        a, b, c, d = self.today.uniform(-0.16, 0.16, 4)
        log = a * x + b * y + c * x * y + d * (x * x + y * y - 0.5)
        return np.broadcast_to(np.exp(log), self.shape)


class Body(Drawing):
    """One patient's abdomen on one day; organs are placed by their share of the height.

    Args:
        anatomy: draws everything that stays the same from day to day.
        today: draws everything that changes from day to day, and the noise.
        shape: slices, height, width.
        spacing: pixel size within slices, mm.
    """

    def __init__(
        self, anatomy: Generator, today: Generator, shape: tuple[int, int, int], spacing: float
    ) -> None:
        super().__init__(today, shape, spacing, today.normal(0, 4, 2))
        self.girth = anatomy.uniform(0.88, 1.08)
        self.depth = anatomy.uniform(0.9, 1.1)
        at = self._places(anatomy.normal(0, 5, (8, 3)))
        self.skin = self._ellipsoid((0, 0, 130), (150 * self.girth, 108 * self.depth, 1e4))
        self.cavity = self._ellipsoid((0, -6, 130), (128 * self.girth, 84 * self.depth, 1e4))
        self.spine = self._ellipsoid(at(0, 0, 62, 0.5), (24, 22, 1e4))
        self.liver = self._ellipsoid(at(1, -62, -8, 0.86), (66, 62, 78))
        self.spleen = self._ellipsoid(at(2, 92, 30, 0.82), (26, 34, 48))
        self.right_kidney = self._ellipsoid(at(3, -58, 46, 0.55), (23, 26, 52))
        self.left_kidney = self._ellipsoid(at(3, 58, 46, 0.55), (23, 26, 52))
        self.aorta = self._ellipsoid(at(4, 10, 34, 0.5), (9, 9, 1e4))
        self.vena_cava = self._ellipsoid(at(4, -14, 34, 0.5), (10, 8, 1e4))
        self.stomach = self._stomach(at, today.uniform(0.85, 1.15))
        self.large_bowel = self._large_bowel(at, anatomy.uniform(0.9, 1.1))
        self.small_bowel = self._small_bowel(at)

    def _places(self, offsets: Field) -> Place:
        """Return the function that places organs, each shifted by its row of `offsets`, mm."""

        def at(organ: int, x: float, y: float, z: float) -> Point:
            dx, dy, dz = offsets[organ]
            return (x * self.girth + dx, y * self.depth + dy, z * self.HEIGHT + dz)

        return at

    def _stomach(self, at: Place, filling: float) -> Field:
        arc = [(78, 2, 0.95), (76, -12, 0.84), (62, -30, 0.74), (34, -44, 0.68), (4, -42, 0.69)]
        radii = [30, 35, 33, 26, 17]
        return self._tube([at(5, *p) for p in arc], [r * filling for r in radii])

    def _large_bowel(self, at: Place, width: float) -> Field:
        frame = [
            (-84, 10, 0.1), (-92, 14, 0.3), (-90, 10, 0.52), (-70, -34, 0.6), (-30, -56, 0.56),
            (20, -58, 0.53), (70, -42, 0.54), (104, 10, 0.58), (100, 20, 0.4), (90, 16, 0.2),
            (60, 14, 0.09), (30, 26, 0.07),
        ]  # fmt: skip
        points = [at(6, *p) for p in frame]
        # The radius varies along the tube, which forms pouches.
        dense = _resample(points, 40)
        phase = self.today.uniform(0, 2 * np.pi)
        radii = [width * (19 + 3 * np.sin(1.9 * i + phase)) for i in range(len(dense))]
        return self._tube(dense, radii)

    def _small_bowel(self, at: Place) -> Field:
        middle = np.array(at(7, 4, -8, 0.3))
        reach = np.array([58 * self.girth, 44 * self.depth, 0.17 * self.HEIGHT])
        loops = np.full(self.shape, np.inf)
        for _ in range(5):
            steps = self.today.normal(0, 0.55, (9, 3))
            path = np.clip(np.cumsum(steps, 0) + self.today.uniform(-0.6, 0.6, 3), -1, 1)
            points = [tuple(middle + reach * p) for p in path]
            radii = list(self.today.uniform(13, 17, len(points)))
            loops = np.minimum(loops, self._tube(points, radii))
        return loops

    def render(self) -> NDArray[np.uint16]:
        """Return the MR-like image `[S, H, W]`, 16-bit."""
        return self.mr(
            (
                (self.skin, 0.70, 0.05),  # fat
                (self.cavity, 0.46, 0.08),
                (np.minimum(self.aorta, self.vena_cava), 0.16, 0.02),
                (self.spine, 0.30, 0.04),
                (self.liver, 0.40, 0.02),
                (self.spleen, 0.33, 0.02),
                (np.minimum(self.right_kidney, self.left_kidney), 0.62, 0.04),
                (self.small_bowel, 0.66, 0.09),
                (self.large_bowel, 0.26, 0.07),
                (self.stomach, 0.52, 0.06),
            ),
            ((self.stomach, 0.30), (self.large_bowel, 0.55), (self.small_bowel, 0.45)),
        )


def _resample(points: list[Point], count: int) -> list[Point]:
    """Return `count` points along the line of the given ones."""
    array = np.array(points)
    steps = np.linspace(0, len(points) - 1, count)
    columns = [np.interp(steps, np.arange(len(points)), array[:, i]) for i in range(3)]
    return list(zip(*columns, strict=True))


def union(*fields: Field) -> Field:
    """Return the signed distance to the union of regions."""
    return reduce(np.minimum, fields)


def overlap(*fields: Field) -> Field:
    """Return the signed distance to the intersection of regions."""
    return reduce(np.maximum, fields)
