"""Scores all classes of a case at the same time."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from attnseg.metrics.surface import Mask

Scores = TypeVar("Scores")


def score_classes(
    truth: NDArray[Any],
    prediction: NDArray[Any],
    score: Callable[[int, Mask, Mask], Scores],
    classes: int,
) -> list[Scores]:
    """Score every class of a case, in one thread per core.

    The masks of a label map are made when their class is scored, so that memory holds no more than
    one pair per core.

    Args:
        truth: booleans `[classes, S, H, W]`, or a label map `[S, H, W]` of integers, in which 0 is
            the background and `k` is class `k - 1`.
        prediction: the same, in either form.
        score: takes a class's index and its true and predicted masks `[S, H, W]`. They are not
            cropped, because the score of a missed organ may depend on the size of the image.
        classes: number of foreground classes.
    """

    def score_class(index: int) -> Scores:
        return score(index, _class_mask(truth, index), _class_mask(prediction, index))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(score_class, range(classes)))


def _class_mask(volume: NDArray[Any], index: int) -> Mask:
    mask: Mask = volume[index] if volume.dtype == np.bool_ else volume == index + 1
    return mask
