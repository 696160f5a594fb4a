"""Resizing of logits, and the probabilities and uncertainty that they stand for."""

import cv2
import numpy as np
from scipy.special import entr, expit, softmax

from attnseg.data.labels import Floats


def resize_logits(logits: Floats, size: tuple[int, int]) -> Floats:
    """Resize `[B, K, h, w]` bilinearly to `[B, K, *size]`, with pixel centres as in PyTorch."""
    if logits.shape[2:] == size:
        return logits
    resized = np.empty((*logits.shape[:2], *size), np.float32)
    for source, target in zip(
        logits.reshape(-1, *logits.shape[2:]), resized.reshape(-1, *size), strict=True
    ):
        cv2.resize(source, size[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def to_probabilities(logits: Floats, overlapping: bool) -> Floats:
    """Return the probabilities `[B, K, H, W]`: a sigmoid if classes overlap, else a softmax."""
    return np.asarray(expit(logits) if overlapping else softmax(logits, axis=1), np.float32)


def to_uncertainty(probabilities: Floats, overlapping: bool) -> Floats:
    """Return the normalised entropy of each pixel, `[B, H, W]`, from 0 (certain) to 1.

    That is the entropy of the channels divided by its largest possible value or, where classes
    overlap, the entropy of presence and absence of the least certain class.
    """
    if overlapping:
        each = entr(probabilities) + entr((1 - probabilities).clip(0))
        return np.asarray(each.max(1) / np.log(2), np.float32)
    return np.asarray(entr(probabilities).sum(1) / np.log(probabilities.shape[1]), np.float32)
