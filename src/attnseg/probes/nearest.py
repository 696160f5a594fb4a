"""Nearest of many: a rib takes the class of the vertebra at its height."""

import numpy as np

from attnseg.probes.probe import Canvas, Drawn, Probe, label_pair, paint

VERTEBRAE = 8  # one below the other
TALL = 32 / VERTEBRAE


class Nearest(Probe):
    """A spine on the left; four ribs on the right, each at the height of a vertebra.

    A vertebra is a wedge whose bright end is on the left or on the right. Half of them are of
    either kind, so that their mean tells nothing; which ones is random. The second picture of a
    group is the first with the spine mirrored, which turns every kind into the other. Chance: a
    prediction that does not depend on the spine is right in one of the two.
    """

    name = "nearest"
    question = "Of which kind is the nearest vertebra, the one at the height of the rib?"
    tests = "sharp choice of one among many"
    classes = ("left wedge", "right wedge")

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        image = canvas.background(0.35)
        kinds = canvas.order(VERTEBRAE) % 2
        for number in range(VERTEBRAE):
            middle = TALL * (number + 0.5) + canvas.uniform(-0.3, 0.3)
            for end in (0, 1):
                half = canvas.ellipse(middle, 2.5 + 3 * end, 0.42 * TALL, 1.8)
                image += half * (np.where(kinds[:, number] == end, 0.9, 0.1)[:, None, None] - image)
        organs, evidence = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
        answer = np.zeros(image.shape, np.int64)
        # Ribs are not neighbours of one another.
        heights = 2 * canvas.order(VERTEBRAE // 2) + canvas.choice(2)[:, None]
        for number in heights.T:
            middle = TALL * (number + 0.5)
            across = canvas.choice(4)[:, None, None] + 25
            rib = (np.abs(canvas.y - middle[:, None, None]) < 2) & (np.abs(canvas.x - across) < 4)
            paint(image, rib.astype(np.float32), 0.9)
            kind = np.take_along_axis(kinds, number[:, None], 1)
            organs |= rib
            answer = np.where(rib, kind[..., None], answer)
            level_with = np.abs(canvas.y - middle[:, None, None]) < TALL / 2
            evidence |= level_with & (canvas.x < 8)
        image += canvas.noise()
        other = image.copy()
        other[..., :8] = image[..., 7::-1]
        labels = label_pair(organs, answer)
        return np.stack([image, other], 1), labels, np.stack([evidence] * 2, 1)
