"""The profile `transunet`: scores Synapse as TransUNet's published code and its copies do.

It reproduces `calculate_metric_percase` of https://github.com/Beckschen/TransUNet (arXiv
2102.04306) and DAE-Former (arXiv 2212.13504) bug for bug: a missed organ has a distance of 0, a
spurious one a Dice of 1, and distances are in voxels, although papers print mm. Use it only to
compare with their tables.
"""

from dataclasses import dataclass
from typing import ClassVar

from attnseg.metrics.overlap import Overlap
from attnseg.metrics.profiles.profile import Mask, Metric, Profile, Spacing
from attnseg.metrics.surface import hd95_pooled, surface_distances


@dataclass(frozen=True)
class TransUNet(Profile):
    """Computes Dice and HD95 as the published code for Synapse does."""

    version: int = 2

    name: ClassVar = "transunet"
    metrics: ClassVar = (
        Metric("dice", "Dice"),
        Metric("hd95_voxels", "HD95", "voxels", up=False),
    )
    rules: ClassVar = {
        "unit": "case in 3D, spacing ignored; mean over cases, then classes",
        "missed": "Dice 0, HD95 0",
        "spurious": "Dice 1, HD95 0",
        "both_empty": "Dice 0, HD95 0",
        "hd95_voxels": "95th percentile of both directions together, voxels; in a volume of one "
        "slice every voxel is surface",
    }

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        """Score one class of one case; see `Profile.score`."""
        if not prediction.any():
            return {"dice": 0.0, "hd95_voxels": 0.0}
        if not truth.any():
            return {"dice": 1.0, "hd95_voxels": 0.0}
        # The code erodes in 3D: every voxel of a single slice counts as surface.
        distances = surface_distances(truth, prediction, (1.0, 1.0, 1.0), flat_axes=True)
        dice = Overlap.of(truth, prediction).dice
        return {"dice": dice, "hd95_voxels": hd95_pooled(distances)}
