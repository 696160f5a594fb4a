"""A decoded image that is to be segmented, and its scaling to [0, 1]."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnseg.data.slicing import scale_intensities
from attnseg.data.store import PERCENTILES, intensity_window
from attnseg.prediction.spec import InferenceSpec


@dataclass(frozen=True)
class Scan:
    """A decoded scan, or a picture as a scan of one slice.

    Attributes:
        image: `[S, H, W, C]` (see `Case`).
        spacing: voxel size along S, H, W, mm; `None` if unknown.
        affine: of the file (see `Case`); `None` if it has none.
        low: intensity that becomes 0, per channel.
        high: intensity that becomes 1, per channel.
        warnings: a line for whatever the files leave open or contradict.
    """

    image: NDArray[Any]
    spacing: tuple[float, float, float] | None
    affine: NDArray[np.float64] | None
    low: tuple[float, ...]
    high: tuple[float, ...]
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, height, width."""
        return self.image.shape[0], self.image.shape[1], self.image.shape[2]

    def scaled(self, index: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return slices in [0, 1], between `low` and `high`: `[n, H, W, C]`."""
        return scale_intensities(self.image[index], self.low, self.high)

    def differences_from_training(self, spec: InferenceSpec) -> list[str]:
        """Return warnings where the scan is unlike those that the network was trained on."""
        warnings = []
        if self.image.min() == self.image.max():
            warnings.append("every voxel has the same intensity")
        if self.spacing is not None and spec.spacing is not None:
            least, most = spec.spacing
            sides = zip(self.spacing, least, most, strict=True)
            if any(value < low / 2 or value > 2 * high for value, low, high in sides):
                warnings.append(
                    f"voxels of {_mm(self.spacing)} mm, in training {_mm(least)} to {_mm(most)} mm"
                )
        if spec.window is not None:
            middle = self.image[len(self.image) // 2]
            inside = np.mean((middle > self.low) & (middle < self.high))
            if inside < 0.01:
                warnings.append(
                    f"hardly any intensity of the middle slice is between {self.low[0]:g} and "
                    f"{self.high[0]:g}, the window of the training"
                )
        return warnings


def make_scan(
    image: NDArray[Any],
    spacing: tuple[float, float, float] | None,
    affine: NDArray[np.float64] | None,
    fixed: tuple[float, float] | None,
    warnings: tuple[str, ...] = (),
) -> Scan:
    """Return a scan that is scaled in the same way as the training cases.

    `fixed` holds the intensities that become 0 and 1; `None` stands for percentiles of the image.
    """
    if fixed is None:
        percentiles = np.percentile(image, PERCENTILES, axis=(0, 1, 2)).T
    else:
        percentiles = np.empty((image.shape[3], 0))
    low, high = intensity_window(fixed, percentiles)
    return Scan(image, spacing, affine, low, high, warnings)


def _mm(sizes: tuple[float, ...]) -> str:
    return "x".join(f"{size:.3g}" for size in sizes)
