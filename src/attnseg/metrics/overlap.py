"""Metrics of two masks that only count voxels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from attnseg.metrics.surface import bounding_box

Mask = NDArray[np.bool_]


def ratio(numerator: float, denominator: float) -> float:
    """Return a quotient, NaN for 0 / 0."""
    return numerator / denominator if denominator else float("nan")


@dataclass(frozen=True)
class Overlap:
    """The confusion matrix of one class, in voxels; every ratio is NaN where it is 0 / 0.

    Attributes:
        tp: in truth and prediction.
        fp: in the prediction only.
        fn: in the truth only.
        tn: in neither.
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


def lesion_f1(truth: Mask, prediction: Mask) -> float:
    """F1 of connected components, with all diagonal neighbours connected.

    A true component is found, and a predicted one right, if a voxel of it is in the other mask.
    With true components that were found as tp, missed ones as fn, and wrong ones as fp:
    2 tp / (2 tp + fp + fn). NaN if both masks are empty.
    """
    either = truth | prediction
    if not either.any():
        return float("nan")
    box = bounding_box(either)
    truth, prediction = truth[box], prediction[box]
    connected = np.ones((3,) * truth.ndim, bool)
    true, number = ndimage.label(truth, connected)
    predicted, predicted_number = ndimage.label(prediction, connected)
    found = len(np.unique(true[prediction & truth]))
    right = len(np.unique(predicted[prediction & truth]))
    missed, wrong = number - found, predicted_number - right
    return ratio(2 * found, 2 * found + missed + wrong)
