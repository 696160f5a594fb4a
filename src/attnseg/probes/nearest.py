"""Nearest of many: a nodule takes the class of the vertebra at its height, out of eight."""

import numpy as np

from attnseg.probes.probe import Canvas, Drawn, Probe, paint

LEVELS = 8  # vertebrae, one below the other


class Nearest(Probe):
    """A spine on the left; nodules on the right, each at the height of one of the vertebrae.

    A vertebra is a wedge whose bright end is on the left or on the right. Four are of either kind,
    so that their mean tells nothing; which ones is random. The second picture of a group is the
    first with the spine mirrored, which turns every kind into the other. Chance: a prediction that
    does not depend on the spine is right in one of the two.
    """

    name = "nearest"
    question = "Of which kind is the vertebra at the height of the nodule, among eight?"
    tests = "sharp choice of one token among many"
    classes = ("left wedge", "right wedge")

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        tall = 32 / LEVELS
        kinds = canvas.order(LEVELS) % 2
        image = np.full((canvas.groups, *canvas.size), 0.2, np.float32)
        paint(image, canvas.ellipse(16, 16, 40, canvas.uniform(13, 16)), 0.35)
        evidence = np.zeros(image.shape, bool)
        for number in range(LEVELS):
            middle = tall * (number + 0.5) + canvas.uniform(-0.3, 0.3)
            for end in (0, 1):
                half = canvas.ellipse(middle, 2.5 + 3 * end, 1.7, 1.7)
                image += half * (np.where(kinds[:, number] == end, 0.9, 0.1)[:, None, None] - image)
        # Nodules are not neighbours of one another.
        heights = 2 * canvas.order(LEVELS // 2)[:, :3] + canvas.choice(2)[:, None]
        labels = np.zeros((canvas.groups, 2, *canvas.size), np.int64)
        for number in heights.T:
            radius = canvas.uniform(1.7, 2.2)
            x = canvas.uniform(23, 28)
            nodule = canvas.ellipse(tall * (number + 0.5), x, radius, radius)
            paint(image, nodule, 0.9)
            kind = np.take_along_axis(kinds, number[:, None], 1)
            answer = np.concatenate([1 + kind, 2 - kind], 1)
            labels = np.where((nodule > 0.5)[:, None], answer[..., None, None], labels)
            own = (canvas.y - tall * (number[:, None, None] + 0.5)).__abs__() < tall / 2
            evidence |= own & (canvas.x < 8)
        image += canvas.noise()
        other = image.copy()
        spine = slice(0, round(8 * canvas.unit))
        other[:, :, spine] = image[:, :, spine][:, :, ::-1]
        return np.stack([image, other], 1), labels, np.stack([evidence] * 2, 1)
