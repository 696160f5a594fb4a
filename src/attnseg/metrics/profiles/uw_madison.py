"""The profile `uw_madison`: the score of the UW-Madison GI Tract competition.

The score is 0.4 Dice + 0.6 (1 - Hausdorff). Kaggle's own code is not public. Dice is averaged over
slices and classes without those empty in both masks, as a host of the competition explained (an
early version of its page scored them 1, the last one 0). The Hausdorff distance is computed per
scan for the three classes together, in coordinates divided by the volume's shape, and divided by
its largest value sqrt(3), as in https://github.com/openai/mle-bench
(uw-madison-gi-tract-image-segmentation).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attnseg.metrics.overlap import Overlap
from attnseg.metrics.profiles.profile import Mask, Metric, Profile, Score, Spacing, Values
from attnseg.metrics.surface import hd_of_voxels

EXCESS = 10  # a prediction this many times larger than the truth gets the largest distance
ALL = "all classes"


@dataclass(frozen=True)
class UWMadison(Profile):
    """Computes the competition's score and its two parts."""

    version: int = 2

    name: ClassVar = "uw_madison"
    metrics: ClassVar = (
        Metric("score", "score"),
        Metric("dice", "Dice"),
        Metric("hausdorff", "Hausdorff (share of the volume's diagonal)", up=False),
    )
    rules: ClassVar = {
        "unit": "Dice: slice and class; Hausdorff: scan in 3D, classes together",
        "missed": "Dice 0; nothing predicted in a scan: Hausdorff 1",
        "spurious": "Dice 0; nothing true in a scan: Hausdorff 1",
        "both_empty": "slice left out of Dice; scan left out of Hausdorff",
        "hausdorff": "of all voxels, coordinates over the volume's shape, largest of both "
        "directions, / sqrt(3)",
        "score": "0.4 Dice + 0.6 (1 - Hausdorff)",
    }

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        """Sum Dice over the slices of one class; see `Profile.score`."""
        values = [Overlap.of(t, p).dice for t, p in zip(truth, prediction, strict=True)]
        known = [value for value in values if not np.isnan(value)]
        return {"dice_sum": sum(known), "dice_slices": len(known)}

    def score_case(
        self, truth: Mask, prediction: Mask, spacing: Spacing, classes: Sequence[str]
    ) -> list[Score]:
        """Score a scan; see `Profile.score_case`."""
        rows = super().score_case(truth, prediction, spacing, classes)
        distance = self.hausdorff(np.asarray(truth.any(0)), np.asarray(prediction.any(0)))
        return [*rows, (ALL, "hausdorff", distance)]

    def hausdorff(self, truth: Mask, prediction: Mask) -> float:
        """Return the normalised Hausdorff distance of masks `[S, H, W]`, NaN if both are empty."""
        true, predicted = int(truth.sum()), int(prediction.sum())
        if not true and not predicted:
            return math.nan
        if not true or not predicted or predicted > EXCESS * true:
            return 1.0
        share = [1 / length for length in truth.shape]
        return hd_of_voxels(truth, prediction, share) / math.sqrt(3)

    def reduce(self, raw: Mapping[str, Values], weights: Values) -> dict[str, Values]:
        """Average over slices and scans; see `Profile.reduce`."""
        total, slices = (weights @ np.nan_to_num(raw[n]) for n in ("dice_sum", "dice_slices"))
        with np.errstate(invalid="ignore"):
            everything = total.sum(1, keepdims=True) / slices.sum(1, keepdims=True)
            dice = np.concatenate([total / slices, everything], 1)
            known = ~np.isnan(raw["hausdorff"]).all(1)
            far = weights @ np.nansum(raw["hausdorff"], 1) / (weights @ known)
        nothing = np.full_like(total, np.nan)
        together = nothing.copy()
        together[:, ~np.isnan(raw["hausdorff"]).all(0)] = far[:, None]
        score = 0.4 * everything[:, 0] + 0.6 * (1 - far)
        return {
            "score": np.concatenate([nothing, score[:, None]], 1),
            "dice": dice,
            "hausdorff": np.concatenate([together, far[:, None]], 1),
            **self.reduce_added(raw, weights),
        }

    def undefined(self, raw: Mapping[str, Values]) -> Mask:
        """Return the scans without a slice of a class; see `Profile.undefined`."""
        return np.asarray(raw["dice_slices"] == 0)
