"""Crossing vessels: which of two vessels that cross or only touch leads to the marker."""

import numpy as np

from attnseg.probes.probe import Canvas, Drawn, Probe, label_pair, paint, pair_with_mirrored

MARKED = 6  # rows at the top that show the marker
FAR = 20  # row from which the vessels' class is scored


class Vessels(Probe):
    """Two vessels run from top to bottom, and cross or only touch in the middle.

    One of them begins at a bright marker, the other at a dark one. Every vessel has its own class
    along its whole length; scored is the part below, from which the marker is out of sight. The
    second picture of a group has the markers exchanged. Chance: a prediction below that does not
    depend on the markers is right in one of the two.
    """

    name = "vessels"
    question = "Which of the two vessels, crossing or touching, leads to the bright marker?"
    tests = "following a path in steps"
    classes = ("artery", "vein", "artery near the marker", "vein near the marker")

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        image = canvas.background(0.35)
        right, crosses = canvas.choice(2), canvas.choice(2)[:, None, None] == 1
        half, middle = (canvas.uniform(*r)[:, None, None] for r in ((6, 8), (12, 14)))
        # The distance from the middle line falls to 0 at the crossing; where they only touch, to 2.
        way = np.clip((middle - canvas.y) / 5, -1, 1)
        offset = half * np.where(crosses, way, np.maximum(np.abs(way), 2 / half))
        thick = 1.3 * np.where(np.abs(way) < 1, 1.5, 1)  # oblique
        tubes = [
            np.clip(0.5 + thick - np.abs(canvas.x - 16 - s * offset), 0, 1).astype(np.float32)
            for s in (-1, 1)
        ]
        for tube in tubes:
            paint(image, tube, 0.7)
        markers = []
        for side, value in zip((2 * right - 1, 1 - 2 * right), (0.95, 0.1), strict=True):
            markers.append(canvas.ellipse(2.5, 16 + side * half[:, 0, 0], 2.3, 3))
            paint(image, markers[-1], value)
        image += canvas.noise()
        inside = np.maximum(*tubes) > 0.5
        vein = (tubes[1] > tubes[0]) != (right == 1)[:, None, None]
        labels = label_pair(inside, vein) + 2 * (inside & (canvas.y < FAR))[:, None]
        rows, evidence = (
            canvas.rows(0, MARKED),
            (np.maximum(*markers) > 0.5) | (inside & (np.abs(way) < 0.8)),
        )
        return pair_with_mirrored(image, rows), labels, pair_with_mirrored(evidence, rows)
