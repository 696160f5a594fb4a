"""The profile `nnunet`: scores as nnU-Net v2 does (https://github.com/MIC-DKFZ/nnUNet)."""

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
)


@dataclass(frozen=True)
class NNUNet(Profile):
    """Computes Dice and IoU; a class absent from both masks is left out."""

    version: int = 2

    name: ClassVar = "nnunet"
    metrics: ClassVar = (Metric("dice", "Dice"), Metric("jaccard", "Jaccard"))
    rules: ClassVar = {
        "unit": "case in 3D, in voxels; mean over cases, then classes",
        "missed": "Dice 0, Jaccard 0",
        "spurious": "Dice 0, Jaccard 0",
        "both_empty": "undefined, left out of the mean over cases; a class that no case has makes "
        "the mean over classes undefined",
    }

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        """Score one class of one case; see `Profile.score`."""
        counts = Overlap.of(truth, prediction)
        return {"dice": counts.dice, "jaccard": counts.jaccard}

    def reduce(self, raw: Mapping[str, Values], weights: Values) -> dict[str, Values]:
        """Average over cases, then over all classes; see `Profile.reduce`."""
        reduced = {}
        for name in (metric.name for metric in self.metrics if metric.name in raw):
            each = weighted_mean(raw[name], weights)
            reduced[name] = np.concatenate([each, each.mean(1, keepdims=True)], 1)
        return reduced
