"""How slices become the network's input: one place stacks, resizes and scales them."""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray


class Slices(Protocol):
    """An image as slices: a prepared case, or one that was read to be segmented."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, height, width."""
        ...

    def scaled(self, index: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return slices in [0, 1]: `[n, H, W, C]`."""
        ...


class MaskedSlices(Slices, Protocol):
    """Slices with a mask."""

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Mask `[S, H, W]` (see `Case.mask`)."""
        ...


@dataclass(frozen=True)
class SliceView:
    """How a slice becomes the network's input.

    Attributes:
        size: height and width for the network; the aspect ratio is not kept.
        slices: slices that the network sees at once (2.5D), an odd number; the middle one is
            segmented.
        stride: distance between them, in slices; beyond the ends the last slice is repeated.
    """

    size: tuple[int, int]
    slices: int = 1
    stride: int = 1

    def image(self, case: Slices, index: int) -> NDArray[np.float32]:
        """Return a slice and its neighbours, scaled to [0, 1] and resized: `[*size, slices * C]`.

        Neighbours come from the feet up, each with all its channels.
        """
        stacked = self.stacked(case, index)
        resized = cv2.resize(stacked, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, np.float32).reshape(*self.size, stacked.shape[2])

    def stacked(self, case: Slices, index: int) -> NDArray[np.float32]:
        """Return the same at the case's own size: `[H, W, slices * C]`."""
        scaled = case.scaled(self.neighbours(case, index))
        return scaled[0] if len(scaled) == 1 else np.concatenate(scaled, -1)

    def neighbours(self, case: Slices, index: int) -> NDArray[np.intp]:
        """Return the numbers of the slices that are seen with one."""
        reach = self.slices // 2
        around = index + self.stride * np.arange(-reach, reach + 1)
        return around.clip(0, case.shape[0] - 1)

    def mask(self, case: MaskedSlices, index: int) -> NDArray[np.uint8]:
        """Return a slice's mask (see `Case.mask`), resized without interpolation: `[*size]`."""
        # Exact: the plain one takes each pixel's corner, half a pixel off the image.
        nearest = cv2.INTER_NEAREST_EXACT
        resized = cv2.resize(case.mask[index], self.size[::-1], interpolation=nearest)
        return np.asarray(resized, np.uint8)


def network_input(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn `[H, W, C]` in [0, 1] into the network's `[C, H, W]` in [-1, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)) * 2 - 1


def scale_intensities(
    image: NDArray[np.generic], low: tuple[float, ...], high: tuple[float, ...]
) -> NDArray[np.float32]:
    """Scale `[..., C]` to [0, 1] between an intensity that becomes 0 and one that becomes 1.

    Args:
        image: intensities.
        low: intensity that becomes 0, per channel.
        high: intensity that becomes 1, per channel.
    """
    ends = np.array(low, np.float32), np.array(high, np.float32)
    values = (image.astype(np.float32) - ends[0]) / (ends[1] - ends[0])
    return np.asarray(values.clip(0, 1), np.float32)
