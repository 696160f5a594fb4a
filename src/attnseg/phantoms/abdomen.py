"""The synthetic abdomen with all organs that a CT shows."""

import numpy as np
from numpy.random import Generator

from attnseg.phantoms.body import Body, Field, Place, overlap, union


class Abdomen(Body):
    """A body with more organs, muscles, ribs and lungs.

    Position and outline of the organs vary from patient to patient; the outline by smooth noise.
    """

    def __init__(
        self, anatomy: Generator, today: Generator, shape: tuple[int, int, int], spacing: float
    ) -> None:
        super().__init__(anatomy, today, shape, spacing)
        at = self._places(anatomy.normal(0, 3, (7, 3)))
        centred = self._places(np.zeros((1, 3)))
        self._add_skeleton(centred)
        self._add_chest(centred)
        lobe = self._ellipsoid(at(0, 10, -46, 0.86), (58, 26, 46))
        self.liver = self._within(self._uneven(self._joined(self.liver, lobe), anatomy))
        self.spleen = self._within(self._uneven(self.spleen, anatomy))
        self.stomach = self._within(self.stomach)
        self.sinuses = union(
            *(self._ellipsoid(centred(0, s * 44, 43, 0.55), (13, 8, 22)) for s in (-1, 1))
        )
        self.right_kidney = overlap(self.right_kidney, -self.sinuses)
        self.left_kidney = overlap(self.left_kidney, -self.sinuses)
        self.gallbladder = self._uneven(
            self._ellipsoid(at(1, -46, -34, 0.64), (14, 17, 30)), anatomy, 2
        )
        path = [centred(0, 3, 21, 1.05), centred(0, 6, 18, 0.92), centred(0, 26, 4, 0.84)]
        self.oesophagus = self._tube(path, [8, 8, 9])
        duct = [(-26, 4, 0.56), (-16, -4, 0.62), (8, -6, 0.65), (36, 4, 0.69), (66, 16, 0.74)]
        gland = self._tube([at(2, *p) for p in duct], [14, 12, 10, 10, 9])
        self.pancreas = self._uneven(gland, anatomy, 2)
        vein = [(84, 26, 0.78), (60, 24, 0.75), (30, 14, 0.7), (-4, 10, 0.66), (-30, 2, 0.74)]
        self.portal_vein = self._tube([at(2, *p) for p in (*vein, (-52, -6, 0.84))], [6.5] * 6)
        self.right_adrenal = self._adrenal(at, 3, -1)
        self.left_adrenal = self._adrenal(at, 4, 1)

    def _add_skeleton(self, at: Place) -> None:
        """Add the spine, the ribs and the muscles around them."""
        self.spine = self._ellipsoid(at(0, 0, 63, 0.5), (23, 17, 1e4))
        self.canal = self._ellipsoid(at(0, 0, 84, 0.5), (9, 7, 1e4))
        arch = self._ellipsoid(at(0, 0, 84, 0.5), (14, 12, 1e4))
        spinous = self._ellipsoid(at(0, 0, 94, 0.5), (3.5, 8, 1e4))
        transverse = self._ellipsoid(at(0, 0, 82, 0.5), (36, 4, 1e4))
        self.arch = overlap(union(arch, spinous, transverse), -self.canal)
        psoas = [self._ellipsoid(at(0, s * 31, 57, 0.3), (14, 16, 95)) for s in (-1, 1)]
        back = [self._ellipsoid(at(0, s * 29, 88, 0.5), (24, 12, 1e4)) for s in (-1, 1)]
        self.muscle = union(self.cavity - 10, *psoas, *back)
        x, y, z = self.axes
        # Ribs are oblique: their cross-section moves along the wall from slice to slice.
        turns = np.arctan2(y * 1.4, x) * 7 / np.pi + z / 22 * np.sign(x)
        along = (turns - np.rint(turns)) * 46
        ribs = np.hypot(self.cavity - 5, along / 2.4) - 4
        margin = 0.4 * self.HEIGHT - 0.8 * y * (y < 0)  # costal margin, highest in front
        self.ribs = overlap(ribs, margin - z)

    def _add_chest(self, at: Place) -> None:
        """Add the two domes of the diaphragm, and lungs and heart above them."""
        x, y = self.axes[0] / self.girth, self.axes[1] / self.depth
        heights = [
            top - 0.44 * ((x - middle) / 86) ** 2 - 0.4 * ((y + 8) / 92) ** 2
            for top, middle in ((1.13, -52), (1.08, 58))
        ]
        # Halving the height above it gives about the distance to the sloping diaphragm, for soft
        # edges.
        self.diaphragm = 0.5 * (self.axes[2] - np.maximum(*heights) * self.HEIGHT)
        heart = self._ellipsoid(at(0, 18, -44, 1.04), (58, 36, 40))
        mediastinum = self._ellipsoid(at(0, 0, 26, 0.5), (30, 22, 1e4))
        self.lungs = overlap(self.cavity + 3, -self.diaphragm, -mediastinum)
        self.heart = overlap(heart, -self.diaphragm)

    def _adrenal(self, at: Place, organ: int, side: int) -> Field:
        """Return the two limbs of an adrenal gland, thick enough to be visible at any spacing."""
        radius = max(3.5, 0.75 * self.spacing)
        apex, feet = (side * 29, 25), ((side * 38, 35), (side * 27, 39))
        limbs = [
            self._tube([at(organ, *foot, z), at(organ, *apex, z)], [radius] * 2)
            for foot in feet
            for z in np.linspace(0.66, 0.78, 7)
        ]
        return union(*limbs)

    def _within(self, organ: Field) -> Field:
        """Return the part of an organ that lies in the cavity and below the diaphragm."""
        return overlap(organ, self.cavity + 4, self.diaphragm + 2)

    def _uneven(self, organ: Field, anatomy: Generator, by: float = 4.0) -> Field:
        """Move an organ's outline by smooth noise with a standard deviation of `by` mm."""
        return organ + by * self.smooth_noise(anatomy, 1, 18)

    def _joined(self, first: Field, second: Field) -> Field:
        """Return the union of two organs with a rounded transition."""
        round_mm = 6.0
        return np.asarray(-round_mm * np.logaddexp(-first / round_mm, -second / round_mm))
