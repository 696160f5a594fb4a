"""Far place: the side of one organ decides the class of others far below, as in situs inversus."""

import numpy as np

from attnseg.probes.probe import (
    Canvas,
    Drawn,
    Floats,
    Masks,
    Probe,
    label_pair,
    paint,
    pair_with_mirrored,
)


class FarPlace(Probe):
    """The liver lies on the left or on the right at the top; both hips at the bottom are equal.

    The second picture of a group is the first with its upper rows mirrored. Chance: a prediction
    that depends on the rows below alone is the same for both, right in one and wrong in the other.
    """

    name = "far_place"
    question = "On which side, far above, does the bright organ lie?"
    tests = "carrying a place across the picture"
    classes = ("solitus", "inversus")

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        image = canvas.background(0.35)
        side, evidence = draw_liver(canvas, image)
        hips = draw_hips(canvas, image)
        image += canvas.noise()
        upper = canvas.rows(0, 10)
        labels = label_pair(hips, side)
        return pair_with_mirrored(image, upper), labels, pair_with_mirrored(evidence, upper)


class Resolution(FarPlace):
    """Far place, tested on pictures of more pixels than those of the training.

    Organs are as much larger as the picture is, so that a token shows a smaller part of them, and
    positions lie between those learned. Chance: as in `FarPlace`.
    """

    name = "resolution"
    question = "Is the far place still seen in pictures of another resolution than in training?"
    tests = "position terms at another resolution"
    test_size = (40, 40)


def draw_liver(canvas: Canvas, image: Floats) -> tuple[np.ndarray, Masks]:
    """Draw a bright and a dark organ side by side at the top.

    Returns:
        The side of the bright one, 0 for the left of the picture, `[G]`; and the pixels of both.
    """
    right = canvas.choice(2)
    shift = (2 * right - 1) * canvas.uniform(6, 7.5)
    y = canvas.uniform(4, 5)
    liver = canvas.ellipse(y, 16 + shift, 3.6, canvas.uniform(4.5, 5.5))
    stomach = canvas.ellipse(y, 16 - shift, 3.2, canvas.uniform(3, 4))
    paint(image, liver, 0.75)
    paint(image, stomach, 0.1)
    return right, (liver > 0.5) | (stomach > 0.5)


def draw_hips(canvas: Canvas, image: Floats) -> Masks:
    """Draw two equal organs at the bottom and return their pixels."""
    y, spread, radius = canvas.uniform(26, 27.5), canvas.uniform(7, 9), canvas.uniform(3.2, 3.9)
    hips = np.maximum(*(canvas.ellipse(y, 16 + s * spread, radius, radius) for s in (-1, 1)))
    paint(image, hips, 0.9)
    return np.asarray(hips > 0.5)
