"""The interface of a trained network, whatever library computes it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Network(Protocol):
    """A trained network for prediction.

    One that computes on a GPU may also have a method `decide(images, size, overlapping)`, which
    returns the logits as `__call__` does, and the masks `[classes, B, *size]` by them at that size.
    """

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Segment a batch of slices.

        Args:
            images: `[B, channels * slices, H, W]` in [-1, 1], see `network_input`.

        Returns:
            Logits `[B, K, H, W]`: a channel per class, after the background's if classes exclude
            each other.
        """
        ...
