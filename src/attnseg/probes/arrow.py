"""Directed relation: an arrow points at one of two equal organs."""

import numpy as np

from attnseg.probes.probe import Canvas, Drawn, Probe, label_pair, paint, pair_with_mirrored


class Arrow(Probe):
    """An arrow at the top points at the left or the right one of two equal organs at the bottom.

    An organ must combine its own side with the arrow's direction. The second picture of a group has
    the arrow mirrored. Chance: a prediction that depends on the lower half alone is the same for
    both.
    """

    name = "arrow"
    question = "At which of the two equal organs does the arrow point?"
    tests = "directed relation of two tokens"
    classes = ("target", "other")

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        image = canvas.background(0.35)
        right = canvas.choice(2)
        way, y = (2 * right - 1)[:, None, None], canvas.uniform(4, 6)[:, None, None]
        # A wedge: its height falls from the shaft to the tip.
        along = way * (canvas.x - 16)
        room = np.minimum(5 - np.abs(along), 0.45 * (5 - along) - np.abs(canvas.y - y))
        arrow = np.clip(0.5 + room, 0, 1).astype(np.float32)
        paint(image, arrow, 0.85)
        organs = []
        height, spread = canvas.uniform(25.5, 27.5), canvas.uniform(8, 10)
        radius = canvas.uniform(3.2, 3.9)
        for side in (-1, 1):
            organs.append(canvas.ellipse(height, 16 + side * spread, radius, radius))
            paint(image, organs[-1], 0.6)
        image += canvas.noise()
        upper, evidence = canvas.rows(0, 12), arrow > 0.5
        other = (canvas.x > 16) != (right[:, None, None] == 1)
        labels = label_pair(np.maximum(*organs) > 0.5, other)
        return pair_with_mirrored(image, upper), labels, pair_with_mirrored(evidence, upper)
