"""Metrics of single objects: panoptic quality, and the detection of objects by their size."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnseg.metrics.overlap import Mask, label_objects, ratio
from attnseg.metrics.profiles.profile import Metric, SingleMetric, Spacing

MATCHED = 0.5  # IoU above which two objects match; no object can match two others


@dataclass(frozen=True)
class PanopticQuality(SingleMetric):
    """Sum of the IoU of matched objects over matched + half of the others; NaN if both are empty.

    Objects are connected components, corners included; they match above an IoU of 0.5. Source:
    Kirillov et al. (CVPR 2019, arXiv 1801.00868), equation 1.
    """

    @property
    def metric(self) -> Metric:
        """See `SingleMetric.metric`."""
        return Metric("panoptic_quality", "PQ")

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> float:
        """See `SingleMetric.score`."""
        (true, true_count), (predicted, predicted_count) = map(label_objects, (truth, prediction))
        matched = _object_ious(true, predicted, true_count, predicted_count)
        matched = matched[matched > MATCHED]
        return ratio(float(matched.sum()), (true_count + predicted_count) / 2)


@dataclass(frozen=True)
class SizedRecall(SingleMetric):
    """Share of the true objects of some size that the prediction touches; NaN if there is none.

    Objects are connected components, corners included. The size is the diameter of a ball with the
    object's volume; of a single slice with known voxel size, it counts as one voxel thick.

    Attributes:
        name: of the sizes, such as `small`.
        above_mm: diameter from which on objects count.
        below_mm: diameter below which they count; `None` for no limit.
    """

    name: str
    above_mm: float = 0.0
    below_mm: float | None = None

    @property
    def metric(self) -> Metric:
        """See `SingleMetric.metric`."""
        above = [f"from {self.above_mm:g} mm"] if self.above_mm else []
        below = [f"below {self.below_mm:g} mm"] if self.below_mm is not None else []
        limits = ", ".join([*above, *below]) or "of any size"
        label = f"recall of {self.name} objects ({limits})"
        return Metric(f"recall_{self.name}", label, shown=False)

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> float:
        """See `SingleMetric.score`."""
        if spacing is None:
            return math.nan
        objects, count = label_objects(truth)
        voxels = np.bincount(objects.ravel(), minlength=count + 1)[1:]
        diameters = np.cbrt(6 / math.pi * voxels * math.prod(spacing))
        touched = np.zeros(count + 1, bool)
        touched[np.unique(objects[prediction])] = True
        chosen = (diameters >= self.above_mm) & (diameters < (self.below_mm or math.inf))
        return ratio(int(np.count_nonzero(touched[1:] & chosen)), int(np.count_nonzero(chosen)))


def _object_ious(
    true: NDArray[np.int32], predicted: NDArray[np.int32], true_count: int, predicted_count: int
) -> NDArray[np.float64]:
    """Return the IoU of every true with every predicted object, `[true, predicted]`."""
    pairs = true.ravel().astype(np.int64) * (predicted_count + 1) + predicted.ravel()
    counts = np.bincount(pairs, minlength=(true_count + 1) * (predicted_count + 1))
    shared = counts.reshape(true_count + 1, predicted_count + 1)
    either = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    with np.errstate(invalid="ignore"):
        return np.asarray((shared / either)[1:, 1:])
