"""The centreline Dice (clDice) of tubes such as vessels and ducts."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from attnseg.metrics.overlap import Mask
from attnseg.metrics.profiles.profile import Metric, SingleMetric, Spacing
from attnseg.metrics.surface import bounding_box


@dataclass(frozen=True)
class CentrelineDice(SingleMetric):
    """Harmonic mean of the shares of each mask's skeleton that lie inside the other mask.

    NaN if both masks are empty, 0 if one is. Source: Shit et al. (CVPR 2021, arXiv 2003.07311),
    equations 1 to 3. The skeleton is morphological (see `skeletonise`), as in the paper's loss.
    """

    @property
    def metric(self) -> Metric:
        """See `SingleMetric.metric`."""
        return Metric("cldice", "clDice")

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> float:
        """See `SingleMetric.score`."""
        true, predicted = bool(truth.any()), bool(prediction.any())
        if not (true and predicted):
            return 0.0 if true or predicted else math.nan
        # With a margin, which keeps what lies in one slice of several from being taken for 2D.
        box = tuple(
            slice(max(0, side.start - 1), side.stop + 1)
            for side in bounding_box(truth | prediction)
        )
        truth, prediction = truth[box], prediction[box]
        true_line, predicted_line = skeletonise(truth), skeletonise(prediction)
        precision = np.count_nonzero(predicted_line & truth) / np.count_nonzero(predicted_line)
        sensitivity = np.count_nonzero(true_line & prediction) / np.count_nonzero(true_line)
        together = precision + sensitivity
        return 2 * precision * sensitivity / together if together else 0.0


def skeletonise(mask: Mask) -> Mask:
    """Return the morphological skeleton of a mask: what opening removes after each erosion.

    Source: Lantuejoul (1980); eroded by a cross and dilated by its square or cube, as in the soft
    skeleton of Shit et al. A voxel is removed just if no neighbour is farther from the outside, in
    steps along the axes, so one distance transform does. A single slice is 2D, and the border of
    the image counts as outside.
    """
    flat = tuple(axis for axis, length in enumerate(mask.shape) if length == 1)[: mask.ndim - 2]
    plane = np.pad(mask.squeeze(flat), 1)
    steps = ndimage.distance_transform_cdt(plane, "taxicab")
    peaks = plane & (ndimage.maximum_filter(steps, 3) <= steps)
    inner = peaks[(slice(1, -1),) * plane.ndim]
    return np.asarray(np.expand_dims(inner, flat), bool)
