"""The profile `isic_pooled`: scores ISIC 2018 as the code of BCDU-Net and its followers does.

It pools all pixels of all test pictures in one confusion matrix (https://github.com/rezazad68/BCDU-Net,
DAE-Former, D-LKA): large lesions count more than small ones, and pictures that failed are hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attnseg.metrics.overlap import Overlap
from attnseg.metrics.profiles.profile import Mask, Metric, Profile, Spacing, Values, with_mean

COUNTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True)
class ISICPooled(Profile):
    """Computes DSC, SE, SP and ACC of all pixels together."""

    name: ClassVar = "isic_pooled"
    metrics: ClassVar = (
        Metric("dice", "DSC"),
        Metric("sensitivity", "SE"),
        Metric("specificity", "SP"),
        Metric("accuracy", "ACC"),
    )
    rules: ClassVar = {
        "unit": "all pixels of all pictures in one confusion matrix; then mean over classes",
        "missed": "its pixels are false negatives, no more",
        "spurious": "its pixels are false positives, no more",
        "both_empty": "its pixels are true negatives",
    }

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        """Count one class of one picture; see `Profile.score`."""
        counts = Overlap.of(truth, prediction)
        return {name: getattr(counts, name) for name in COUNTS}

    def reduce(self, raw: Mapping[str, Values], weights: Values) -> dict[str, Values]:
        """Add all pictures up, then divide; see `Profile.reduce`."""
        tp, fp, fn, tn = (weights @ np.nan_to_num(raw[name]) for name in COUNTS)
        with np.errstate(invalid="ignore"):
            each = {
                "dice": 2 * tp / (2 * tp + fp + fn),
                "sensitivity": tp / (tp + fn),
                "specificity": tn / (tn + fp),
                "accuracy": (tp + tn) / (tp + tn + fp + fn),
            }
        means = {name: with_mean(values) for name, values in each.items()}
        return {**means, **self.reduce_added(raw, weights)}
