"""Calibration of predicted probabilities: expected calibration error and Brier score."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 15


class Calibration:
    """Scores the probabilities of one case against the truth, each class against all else.

    The expected calibration error (ECE) follows Guo et al. (2017, arXiv 1706.04599), applied to the
    probability of the class: pixels are sorted into 15 equal bins of probability, and the error is
    the mean over pixels of |share of the class in the bin - mean probability in the bin|. The Brier
    score is the mean of (probability - truth)^2. Both use every pixel at the network's size, most
    of which are easy background, so they compare models and not datasets.

    Args:
        classes: number of foreground classes.
    """

    def __init__(self, classes: int) -> None:
        self.count = np.zeros((classes, BINS))
        self.probability = np.zeros((classes, BINS))
        self.true = np.zeros((classes, BINS))
        self.squares = np.zeros(classes)

    def update(self, probability: Tensor, truth: Tensor) -> None:
        """Add pixels: probabilities `[B, classes, H, W]` in [0, 1], and booleans as their truth."""
        for k in range(len(self.squares)):
            p, t = probability[:, k].flatten().double(), truth[:, k].flatten().double()
            at = (p * BINS).long().clamp(max=BINS - 1)
            self.count[k] += torch.bincount(at, minlength=BINS).numpy()
            self.probability[k] += torch.bincount(at, p, BINS).numpy()
            self.true[k] += torch.bincount(at, t, BINS).numpy()
            self.squares[k] += float(((p - t) ** 2).sum())

    def merge(self, other: "Calibration") -> None:
        """Add the pixels of another case."""
        self.count += other.count
        self.probability += other.probability
        self.true += other.true
        self.squares += other.squares

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Return the values `[classes]` of each metric, by its name in profiles."""
        return {"ece": self.ece(), "brier": self.brier()}

    def ece(self) -> NDArray[np.float64]:
        """Return the expected calibration error of each class."""
        return np.asarray(np.abs(self.true - self.probability).sum(1) / self._pixels())

    def brier(self) -> NDArray[np.float64]:
        """Return the Brier score of each class."""
        return np.asarray(self.squares / self._pixels())

    def _pixels(self) -> NDArray[np.float64]:
        """Return the number of pixels `[classes]`, NaN where all are to be ignored."""
        pixels = self.count.sum(1)
        return np.where(pixels, pixels, np.nan)
