"""Counting: how many of the cells far above are of one kind decides the class of the hips."""

import numpy as np

from attnseg.probes.far_place import draw_hips
from attnseg.probes.probe import Canvas, Drawn, Probe, paint

COUNTS = (2, 3, 4)  # of the cells of the first kind


class Counting(Probe):
    """Six cells at the top, of which two, three or four are upright: bright above, dark below.

    The others are upside down, so that all pictures are equally bright. The pictures of a group
    differ in the number of upright cells. Chance: a prediction that depends on the lower half alone
    is the same for the three pictures of a group, and right in one of them.
    """

    name = "counting"
    question = "How many of the six cells far above are upright?"
    tests = "sum over far tokens"
    classes = ("two", "three", "four")
    deciding = (1, 2, 3)
    chance = 1 / 3
    group = 3

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        base = canvas.background(0.35)
        evidence = np.zeros(base.shape, bool)
        corners = [(6 * row, 4 + 8 * column) for row in range(2) for column in range(3)]
        for top, left in corners:
            x = left + 4 + canvas.uniform(-1, 1)
            for y, value in ((top + 1.8, 0.9), (top + 4.2, 0.1)):
                half = canvas.ellipse(y, x, 1.3, 1.8)
                paint(base, half, value)
                evidence |= half > 0.5
        hips = draw_hips(canvas, base)
        base += canvas.noise()
        rank = canvas.order(len(corners))
        turn = canvas.choice(3)  # The pictures of a group are in any order.
        images, labels = [], []
        for position in range(3):
            which = (turn + position) % 3
            image = base.copy()
            for number, (top, left) in enumerate(corners):
                cell = base[:, top : top + 6, left : left + 8]
                upright = rank[:, number] < np.array(COUNTS)[which]
                image[:, top : top + 6, left : left + 8] = np.where(
                    upright[:, None, None], cell, cell[:, ::-1]
                )
            images.append(image)
            labels.append(hips * (1 + which)[:, None, None])
        return np.stack(images, 1), np.stack(labels, 1), np.stack([evidence] * 3, 1)
