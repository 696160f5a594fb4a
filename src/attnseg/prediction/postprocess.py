"""Postprocessing of masks: removes small connected components, or all but the largest one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Rule:
    """The postprocessing of one class.

    Attributes:
        largest: keep the largest component only.
        min_ml: components with a smaller volume are removed.
        min_pixels: components with fewer voxels (pixels in 2D) are removed.
    """

    largest: bool = False
    min_ml: float = 0.0
    min_pixels: int = 0

    @property
    def is_noop(self) -> bool:
        """Whether the rule changes nothing."""
        return not self.largest and self.min_ml <= 0 and self.min_pixels <= 1


def clean_mask(
    mask: NDArray[np.bool_], rule: Rule, spacing: tuple[float, float, float] | None
) -> NDArray[np.bool_]:
    """Remove components of a mask `[S, H, W]` according to a rule.

    Voxels that touch at a corner belong to one component. The largest component is removed, too, if
    it is too small. `spacing` is the voxel size in mm, needed only if `rule.min_ml` is set.
    """
    if rule.is_noop or not mask.any():
        return mask
    least = rule.min_pixels
    if rule.min_ml > 0:
        if spacing is None:
            raise ValueError("min_ml needs the size of a voxel")
        # The tolerance keeps a component of exactly the limit despite rounding.
        least = max(least, int(np.ceil(rule.min_ml * 1000 / float(np.prod(spacing)) - 1e-6)))
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    stays = sizes >= least
    stays[0] = False  # the background
    if rule.largest:
        sizes[0] = 0
        stays &= np.arange(len(sizes)) == sizes.argmax()
    return np.asarray(stays[labels])
