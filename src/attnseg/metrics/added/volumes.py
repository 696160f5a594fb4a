"""Metrics of volume alone: errors of either sign count, locations do not."""

import math
from dataclasses import dataclass

from attnseg.metrics.overlap import Mask, ratio
from attnseg.metrics.profiles.profile import Metric, SingleMetric, Spacing


@dataclass(frozen=True)
class AbsoluteVolumeError(SingleMetric):
    """|predicted - true| / true volume; NaN without a true voxel, 1 if the class is missed."""

    @property
    def metric(self) -> Metric:
        """See `SingleMetric.metric`."""
        label = "absolute volume error"
        limits = (0.0, math.inf)
        return Metric("absolute_volume_error", label, up=False, shown=False, limits=limits)

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> float:
        """See `SingleMetric.score`."""
        true, predicted = int(truth.sum()), int(prediction.sum())
        return ratio(abs(predicted - true), true)


@dataclass(frozen=True)
class VolumeSimilarity(SingleMetric):
    """1 - |predicted - true| / (predicted + true); NaN if both are empty, 0 if one is.

    Source: Taha and Hanbury, BMC Medical Imaging 15:29 (2015), equation 17.
    """

    @property
    def metric(self) -> Metric:
        """See `SingleMetric.metric`."""
        return Metric("volume_similarity", "volume similarity", shown=False)

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> float:
        """See `SingleMetric.score`."""
        true, predicted = int(truth.sum()), int(prediction.sum())
        return 1 - ratio(abs(predicted - true), predicted + true)
