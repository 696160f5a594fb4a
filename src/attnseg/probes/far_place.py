"""Far place: the side of one organ decides the class of others far below, as in situs inversus."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnseg.probes.probe import Canvas, Drawn, Probe, paint


class FarPlace(Probe):
    """The liver is on the left or on the right at the top; both hips at the bottom are equal.

    The second picture of a group is the first with its upper half mirrored. Chance: a prediction
    that depends on the lower half alone is the same for both, right in one and wrong in the other.
    """

    name = "far_place"
    question = "On which side, far above, does the bright organ lie?"
    tests = "whether places are carried across the picture"
    classes = ("solitus", "inversus")

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        side = 2 * canvas.choice(2) - 1  # of the liver, -1 for left
        y, shift, height, spread, radius = (
            canvas.uniform(low, high)
            for low, high in ((4, 6), (6, 7.5), (26, 27.5), (7, 9), (3, 3.8))
        )
        image = np.full((canvas.groups, *canvas.size), 0.1, np.float32)
        paint(image, canvas.ellipse(16, 16, 30, canvas.uniform(13, 16)), 0.35)
        liver = canvas.ellipse(y, 16 + side * shift, 3.6, canvas.uniform(4.5, 5.5))
        stomach = canvas.ellipse(y, 16 - side * shift, 3.2, canvas.uniform(3, 4))
        hips = np.maximum(
            *(canvas.ellipse(height, 16 + s * spread, radius, radius) for s in (-1, 1))
        )
        for shape, value in ((liver, 0.75), (stomach, 0.1), (hips, 0.9)):
            paint(image, shape, value)
        image += canvas.noise()
        evidence = (liver > 0.5) | (stomach > 0.5)
        labels = (hips > 0.5)[:, None] * np.stack([1 + (side > 0), 1 + (side < 0)], 1)[
            ..., None, None
        ]
        upper = slice(0, canvas.size[0] // 2)
        return (pair_with_mirrored(image, upper), labels, pair_with_mirrored(evidence, upper))


def pair_with_mirrored(image: NDArray[Any], rows: slice) -> NDArray[Any]:
    """Return pictures `[G, H, W]`, and the same with some rows mirrored: `[G, 2, H, W]`."""
    other = image.copy()
    other[:, rows] = image[:, rows, ::-1]
    return np.stack([image, other], 1)
