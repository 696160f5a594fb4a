"""Metrics of two masks that count voxels, and the lesion-wise F1 score."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from attnseg.metrics.surface import bounding_box

Mask = NDArray[np.bool_]


def ratio(numerator: float, denominator: float) -> float:
    """Return a quotient, NaN where the denominator is 0."""
    return numerator / denominator if denominator else math.nan


@dataclass(frozen=True)
class Overlap:
    """The confusion matrix of one class in voxels. A ratio is NaN where it would be 0 / 0.

    Attributes:
        tp: number in truth and prediction.
        fp: number in the prediction only.
        fn: number in the truth only.
        tn: number in neither.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, truth: Mask, prediction: Mask) -> "Overlap":
        """Count two masks of one shape."""
        tp = int(np.count_nonzero(truth & prediction))
        fp, fn = int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(truth)) - tp
        return cls(tp, fp, fn, truth.size - tp - fp - fn)

    @property
    def dice(self) -> float:
        """2 tp / (2 tp + fp + fn), equal to F1."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def jaccard(self) -> float:
        """Tp / (tp + fp + fn)."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def sensitivity(self) -> float:
        """Tp / (tp + fn), also called recall."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Tn / (tn + fp)."""
        return ratio(self.tn, self.tn + self.fp)

    @property
    def precision(self) -> float:
        """Tp / (tp + fp)."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def accuracy(self) -> float:
        """(tp + tn) / all."""
        return ratio(self.tp + self.tn, self.tp + self.tn + self.fp + self.fn)

    @property
    def volume_error(self) -> float:
        """(predicted - true volume) / true volume; negative if too little was predicted."""
        return ratio(self.fp - self.fn, self.tp + self.fn)


def label_objects(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """Number connected components, corners included, from 1; return each voxel's, and how many."""
    objects, count = ndimage.label(mask, np.ones((3,) * mask.ndim, bool))
    return np.asarray(objects, np.int32), int(count)


def lesion_f1(truth: Mask, prediction: Mask) -> float:
    """Return the F1 score of connected components, NaN if both masks are empty.

    Voxels that touch at a corner are connected. A true component is detected, and a predicted one
    right, if one of its voxels is in the other mask. The score is 2 tp / (2 tp + fp + fn), where tp
    are the detected true components, fn the missed ones, and fp the wrong predicted ones.
    """
    either = truth | prediction
    if not either.any():
        return math.nan
    box = bounding_box(either)
    truth, prediction = truth[box], prediction[box]
    (true, number), (predicted, predicted_number) = map(label_objects, (truth, prediction))
    detected = len(np.unique(true[prediction & truth]))
    right = len(np.unique(predicted[prediction & truth]))
    missed, wrong = number - detected, predicted_number - right
    return ratio(2 * detected, 2 * detected + missed + wrong)
