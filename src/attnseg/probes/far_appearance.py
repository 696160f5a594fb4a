"""Far appearance: the direction of the stripes of one organ decides the class of one far below."""

import numpy as np

from attnseg.probes.probe import Canvas, Drawn, Probe, label_pair, paint

SIDE = 12  # of the square that holds the striped organ


class FarAppearance(Probe):
    """A striped disc lies anywhere at the top; an organ at the bottom takes its class from it.

    The second picture of a group is the first with the square around the disc transposed, which
    turns horizontal stripes into vertical ones: same place, mean, spread and histogram. Chance: a
    prediction that depends on the lower half alone is right in one of the two.
    """

    name = "far_appearance"
    question = "Do the stripes of the organ far above run horizontally or vertically?"
    tests = "carrying an appearance across the picture"
    classes = ("horizontal", "vertical")

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        image = canvas.background(0.35)
        vertical = canvas.choice(2)
        left = canvas.choice(32 - SIDE - 4) + 2
        period, phase = canvas.uniform(3.2, 4.2), canvas.uniform(0, 2 * np.pi)
        across = np.where(vertical[:, None, None], canvas.x, canvas.y)
        waves = np.sin(2 * np.pi * across / period[:, None, None] + phase[:, None, None])
        disc = canvas.ellipse(SIDE / 2, left + SIDE / 2, 5, 5)
        image += disc * (0.5 + 0.4 * waves - image)
        y, radius = canvas.uniform(25.5, 27), canvas.uniform(3.6, 4.4)
        organ = canvas.ellipse(y, canvas.uniform(9, 23), radius, radius * 1.4)
        paint(image, organ, 0.9)
        image += canvas.noise()
        groups, size = np.arange(canvas.groups)[:, None, None], np.arange(SIDE)
        rows, columns = size[:, None], left[:, None, None] + size
        other = image.copy()
        other[groups, rows, columns] = image[groups, rows, columns].transpose(0, 2, 1)
        labels = label_pair(organ > 0.5, vertical)
        return np.stack([image, other], 1), labels, np.stack([disc > 0.5] * 2, 1)
