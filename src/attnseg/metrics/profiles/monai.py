"""The profile `monai`: the defaults of MONAI's metrics (https://monai.io).

They leave missed organs out: `DiceMetric` ignores classes that are not in the truth,
`HausdorffDistanceMetric` gives no number where either mask is empty, and `SurfaceDiceMetric` counts
voxels. Each case is averaged over its classes first, then the cases are averaged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attnseg.metrics.overlap import Overlap
from attnseg.metrics.profiles.profile import (
    Mask,
    Metric,
    Profile,
    Spacing,
    Values,
    weighted_mean,
    with_mean,
)
from attnseg.metrics.surface import hd95, nsd_voxels, surface_distances


@dataclass(frozen=True)
class MONAI(Profile):
    """Computes Dice, HD95 and NSD as `monai.metrics` does.

    Attributes:
        nsd_tolerance_mm: distance up to which surfaces agree. MONAI has no default; 3 mm is that
            of `strict`.
    """

    nsd_tolerance_mm: float = 3.0

    name: ClassVar = "monai"
    metrics: ClassVar = (
        Metric("dice", "Dice"),
        Metric("hd95_mm", "HD95", "mm", up=False),
        Metric("nsd", "NSD ({nsd_tolerance_mm:g} mm)"),
    )
    rules: ClassVar = {
        "unit": "case in 3D, with the voxel spacing; mean over classes, then cases",
        "missed": "Dice 0, NSD 0, HD95 undefined and left out",
        "spurious": "Dice undefined and left out, NSD 0, HD95 undefined and left out",
        "both_empty": "undefined, left out of the mean",
        "unknown_spacing": "distances and NSD undefined",
        "hd95_mm": "larger of the two directed 95th percentiles, mm",
        "nsd": "share of surface voxels within the tolerance",
    }

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        """Score one class of one case; see `Profile.score`."""
        true, predicted = bool(truth.any()), bool(prediction.any())
        dice = Overlap.of(truth, prediction).dice if true else math.nan
        if spacing is None or not (true and predicted):
            nsd = 0.0 if true != predicted and spacing is not None else math.nan
            return {"dice": dice, "hd95_mm": math.nan, "nsd": nsd}
        distances = surface_distances(truth, prediction, spacing)
        agreed = nsd_voxels(distances, self.nsd_tolerance_mm)
        return {"dice": dice, "hd95_mm": hd95(distances), "nsd": agreed}

    def reduce(self, raw: Mapping[str, Values], weights: Values) -> dict[str, Values]:
        """Average over the classes of each case, then over cases; see `Profile.reduce`."""
        reduced = {}
        for metric in self.metrics:
            values = raw[metric.name]
            case = with_mean(values)[:, -1:]  # NaN for a case without any class
            parts = [weighted_mean(values, weights), weighted_mean(case, weights)]
            reduced[metric.name] = np.concatenate(parts, 1)
        return reduced
