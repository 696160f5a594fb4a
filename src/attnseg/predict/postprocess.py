"""What is done to masks after the network: components that cannot be an organ go."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Rule:
    """What holds for a class.

    Attributes:
        largest: keep the largest component only.
        min_ml: smaller components go.
        min_pixels: components of fewer voxels, or pixels of a picture, go.
    """

    largest: bool = False
    min_ml: float = 0.0
    min_pixels: int = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is done."""
        return not self.largest and self.min_ml <= 0 and self.min_pixels <= 1


def clean(
    mask: NDArray[np.bool_], rule: Rule, spacing: tuple[float, float, float] | None
) -> NDArray[np.bool_]:
    """Remove components of a mask; voxels that touch at a corner are of one component.

    Args:
        mask: `[S, H, W]`.
        rule: what goes.
        spacing: voxel size, mm; `None` if unknown.

    Raises:
        ValueError: a volume is asked for and the spacing unknown.
    """
    if rule.idle or not mask.any():
        return mask
    least = rule.min_pixels
    if rule.min_ml > 0:
        if spacing is None:
            raise ValueError("min_ml needs the size of a voxel")
        # A component of just the limit stays, whatever the last bit of the division says.
        least = max(least, int(np.ceil(rule.min_ml * 1000 / float(np.prod(spacing)) - 1e-6)))
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    stays = sizes >= least
    stays[0] = False
    if rule.largest:
        sizes[0] = 0
        stays &= np.arange(len(sizes)) == sizes.argmax()
    return np.asarray(stays[labels])
