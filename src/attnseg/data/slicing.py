"""Stacking, resizing and scaling of slices into the network's input."""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray


class Slices(Protocol):
    """An image made of slices: a prepared case, or a scan that is to be segmented."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, height, width."""
        ...

    def scaled(self, index: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the slices of these indices, scaled to [0, 1]: `[n, H, W, C]`."""
        ...


@dataclass(frozen=True)
class SliceView:
    """Turns a slice and its neighbours into the network's input.

    Attributes:
        size: height and width of the input; the aspect ratio is not kept.
        slices: odd number of slices that the network sees at once (2.5D); it segments the middle
            one.
        stride: distance between neighbours, in slices; beyond its ends a scan repeats its first or
            last slice.
    """

    size: tuple[int, int]
    slices: int = 1
    stride: int = 1

    def image(self, case: Slices, index: int) -> NDArray[np.float32]:
        """Return a slice and its neighbours, scaled to [0, 1] and resized: `[*size, slices * C]`.

        The slices keep their order, and each brings all of its channels.
        """
        stacked = self.stacked(case, index)
        resized = cv2.resize(stacked, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, np.float32).reshape(*self.size, stacked.shape[2])

    def stacked(self, case: Slices, index: int) -> NDArray[np.float32]:
        """Return a slice and its neighbours at the case's own size: `[H, W, slices * C]`."""
        scaled = case.scaled(self.neighbours(case, index))
        return scaled[0] if len(scaled) == 1 else np.concatenate(scaled, -1)

    def neighbours(self, case: Slices, index: int) -> NDArray[np.intp]:
        """Return the indices of the slices that are stacked for a slice, itself included."""
        reach = self.slices // 2
        around = index + self.stride * np.arange(-reach, reach + 1)
        return around.clip(0, case.shape[0] - 1)

    def mask(self, label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a slice's label map `[H, W]`, resized without interpolation: `[*size]`."""
        # INTER_NEAREST would sample the corner of each pixel, half a pixel off the image.
        nearest = cv2.INTER_NEAREST_EXACT
        return np.asarray(cv2.resize(label_map, self.size[::-1], interpolation=nearest), np.uint8)


def network_input(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn `[H, W, C]` in [0, 1] into the network's `[C, H, W]` in [-1, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)) * 2 - 1


def scale_intensities(
    image: NDArray[np.generic], low: tuple[float, ...], high: tuple[float, ...]
) -> NDArray[np.float32]:
    """Scale intensities `[..., C]` from `low`..`high`, per channel, to [0, 1] and clip them."""
    zero, one = np.array(low, np.float32), np.array(high, np.float32)
    values = (image.astype(np.float32) - zero) / (one - zero)
    return np.asarray(values.clip(0, 1), np.float32)
