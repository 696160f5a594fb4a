"""The profile `nnunet`: scores as nnU-Net v2 does (https://github.com/MIC-DKFZ/nnUNet)."""

from dataclasses import dataclass
from typing import ClassVar

from attnseg.metrics.overlap import Overlap
from attnseg.metrics.profiles.profile import Mask, Metric, Profile, Spacing


@dataclass(frozen=True)
class NNUNet(Profile):
    """Computes Dice and IoU; a class absent from both masks is left out."""

    name: ClassVar = "nnunet"
    metrics: ClassVar = (Metric("dice", "Dice"), Metric("jaccard", "Jaccard"))
    rules: ClassVar = {
        "unit": "case in 3D, in voxels; mean over cases, then classes",
        "missed": "Dice 0, Jaccard 0",
        "spurious": "Dice 0, Jaccard 0",
        "both_empty": "undefined, left out of the mean",
    }

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        """Score one class of one case; see `Profile.score`."""
        counts = Overlap.of(truth, prediction)
        return {"dice": counts.dice, "jaccard": counts.jaccard}
