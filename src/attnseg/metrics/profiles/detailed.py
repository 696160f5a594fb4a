"""The profile `detailed`: `strict`, and metrics for tubes, contours, single objects and volumes."""

from dataclasses import dataclass, field
from typing import ClassVar

from attnseg.metrics.added.boundary_iou import BoundaryIoU
from attnseg.metrics.added.cldice import CentrelineDice
from attnseg.metrics.added.objects import PanopticQuality, SizedRecall
from attnseg.metrics.added.volumes import AbsoluteVolumeError, VolumeSimilarity
from attnseg.metrics.profiles.profile import SingleMetric
from attnseg.metrics.profiles.strict import Strict

SMALL_MM, LARGE_MM = 10.0, 30.0  # ours: nodules are small below 10 mm, and masses from 30 mm on


def list_all_metrics() -> dict[str, SingleMetric]:
    """Return all metrics of `metrics/added` by their names."""
    singles: list[SingleMetric] = [
        AbsoluteVolumeError(),
        VolumeSimilarity(),
        CentrelineDice(),
        BoundaryIoU(),
        PanopticQuality(),
        SizedRecall("small", below_mm=SMALL_MM),
        SizedRecall("medium", SMALL_MM, LARGE_MM),
        SizedRecall("large", LARGE_MM),
    ]
    return {single.metric.name: single for single in singles}


@dataclass(frozen=True)
class Detailed(Strict):
    """Scores as `Strict` does, and the metrics of `metrics/added` besides."""

    added: dict[str, SingleMetric] = field(default_factory=list_all_metrics, kw_only=True)

    name: ClassVar = "detailed"
