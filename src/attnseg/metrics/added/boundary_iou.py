"""The boundary IoU, which weighs contours and not areas."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from attnseg.metrics.overlap import Mask, ratio
from attnseg.metrics.profiles.profile import Metric, SingleMetric, Spacing


@dataclass(frozen=True)
class BoundaryIoU(SingleMetric):
    """IoU of the rims of both masks, slice by slice, whatever the voxel size.

    A rim is the part of a mask that lies within some pixels of its contour; the border of the image
    counts as outside. NaN if both masks are empty, 0 if one is. Source: Cheng et al. (CVPR 2021,
    arXiv 2103.16562), section 4, for pictures; the voxels of all slices are pooled.

    Attributes:
        share: width of the rim as a share of the slice's diagonal, at least one pixel.
    """

    share: float = 0.02

    @property
    def metric(self) -> Metric:
        """See `SingleMetric.metric`."""
        label = f"boundary IoU ({100 * self.share:g} % of the diagonal)"
        return Metric("boundary_iou", label, shown=False)

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> float:
        """See `SingleMetric.score`."""
        width = max(1, round(self.share * math.hypot(*truth.shape[-2:])))
        common = either = 0
        for true, predicted in zip(truth, prediction, strict=True):
            if true.any() or predicted.any():
                rims = _cut_rim(true, width), _cut_rim(predicted, width)
                common += int((rims[0] & rims[1]).sum())
                either += int((rims[0] | rims[1]).sum())
        return ratio(common, either)


def _cut_rim(mask: Mask, width: int) -> Mask:
    padded = np.pad(mask, 1).astype(np.uint8)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return np.asarray(mask & (inner == 0))
