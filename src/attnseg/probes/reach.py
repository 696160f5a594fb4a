"""Reach: far place at distances from one token to the whole picture, as a curve."""

import numpy as np

from attnseg.probes.probe import Canvas, Drawn, Probe, label_pair, paint

TOKEN = 4  # rows of pixels


class Reach(Probe):
    """A bright and a dark disc lie side by side, a number of tokens above an organ at the bottom.

    The level is that number; training mixes all levels. The second picture of a group has the two
    discs mirrored. Chance: a prediction that does not see so far is the same for both. At small
    distances, the convolutions of a network's head see the discs; these levels are not scored.
    """

    name = "reach"
    question = "How many tokens away may the bright disc be so that its side is still seen?"
    tests = "distance over which tokens are mixed"
    classes = ("left", "right")
    size = (64, 16)
    levels = (1, 2, 3, 5, 7, 10, 13)
    scored = (5, 7, 10, 13)

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        image = canvas.background(0.35)
        tokens = np.array(self.levels)[canvas.choice(len(self.levels))]
        if level is not None:
            tokens = np.full_like(tokens, level)
        right = canvas.choice(2)
        shift = (2 * right - 1) * canvas.uniform(3.2, 4)
        y = 56 - TOKEN * tokens + canvas.uniform(1.8, 2.2)
        discs = [canvas.ellipse(y, 8 + s * shift, 1.8, 2.4) for s in (1, -1)]
        for disc, value in zip(discs, (0.9, 0.1), strict=True):
            paint(image, disc, value)
        organ = canvas.ellipse(canvas.uniform(59.8, 60.2), canvas.uniform(7, 9), 3.6, 5)
        paint(image, organ, 0.7)
        image += canvas.noise()
        evidence = np.maximum(*discs) > 0.5
        band = np.abs(canvas.y - 56 + TOKEN * (tokens[:, None, None] - 0.5)) < TOKEN / 2
        pairs = [np.stack([x, np.where(band, x[..., ::-1], x)], 1) for x in (image, evidence)]
        return pairs[0], label_pair(organ > 0.5, right), pairs[1]
