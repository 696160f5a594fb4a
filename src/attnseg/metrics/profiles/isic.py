"""The profile `isic`: the official metric of ISIC 2018 Task 1 (https://challenge.isic-archive.com)."""

from dataclasses import dataclass
from typing import ClassVar

from attnseg.metrics.overlap import Overlap
from attnseg.metrics.profiles.profile import Mask, Metric, Profile, Spacing


@dataclass(frozen=True)
class ISIC(Profile):
    """Averages over pictures; a Jaccard index below 0.65 counts as 0.

    Attributes:
        threshold: of the Jaccard index.
    """

    threshold: float = 0.65

    name: ClassVar = "isic"
    metrics: ClassVar = (
        Metric("thresholded_jaccard", "Jaccard from {threshold:g} on"),
        Metric("jaccard", "Jaccard"),
        Metric("dice", "Dice"),
        Metric("sensitivity", "sensitivity", shown=False),
        Metric("specificity", "specificity", shown=False),
        Metric("accuracy", "accuracy", shown=False),
    )
    rules: ClassVar = {
        "unit": "picture; mean over pictures, then classes",
        "missed": "overlap metrics 0",
        "spurious": "Dice and Jaccard 0, sensitivity undefined",
        "both_empty": "undefined, left out of the mean: the challenge has no such picture",
    }

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        """Score one class of one picture; see `Profile.score`."""
        counts = Overlap.of(truth, prediction)
        jaccard = counts.jaccard
        return {
            "thresholded_jaccard": 0.0 if jaccard < self.threshold else jaccard,
            "jaccard": jaccard,
            "dice": counts.dice,
            "sensitivity": counts.sensitivity,
            "specificity": counts.specificity,
            "accuracy": counts.accuracy,
        }
