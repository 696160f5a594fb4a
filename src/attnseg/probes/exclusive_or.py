"""Exclusive-or: whether two far organs lie on the same side decides the class of the hips."""

import numpy as np

from attnseg.probes.far_place import draw_hips
from attnseg.probes.probe import Canvas, Drawn, Probe, label_pair, paint, pair_with_mirrored


class ExclusiveOr(Probe):
    """Two bright discs at the top, one above the other, on the same side or on opposite sides.

    Neither disc alone tells anything. The second picture of a group has the upper disc on the other
    side. Chance: a prediction that depends on the lower half, or on one disc, is right in one of
    the two. It is hard because no part of the answer can be learned before the whole.
    """

    name = "exclusive_or"
    question = "Do the two discs far above lie on the same side?"
    tests = "combination of two far facts, each useless alone"
    classes = ("same", "opposite")
    hard = True

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        image = canvas.background(0.35)
        right = canvas.choice(2, 2)
        evidence = np.zeros(image.shape, bool)
        for disc, (y, value) in enumerate(((3, 0.9), (9, 0.1))):
            x = 16 + (2 * right[:, disc] - 1) * canvas.uniform(6, 8)
            shape = canvas.ellipse(y + canvas.uniform(-0.5, 0.5), x, 2.2, 3)
            paint(image, shape, value)
            evidence |= shape > 0.5
        hips = draw_hips(canvas, image)
        image += canvas.noise()
        upper = canvas.rows(0, 6)
        labels = label_pair(hips, right[:, 0] ^ right[:, 1])
        return pair_with_mirrored(image, upper), labels, pair_with_mirrored(evidence, upper)
