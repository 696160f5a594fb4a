"""From logits to masks: the one place that resizes and decides, for scoring and prediction."""

import cv2
import numpy as np

from attnseg.data.labels import Floats


def to_size(logits: Floats, size: tuple[int, int]) -> Floats:
    """Resize `[B, K, h, w]` bilinearly to `[B, K, *size]`, centres of pixels as PyTorch's."""
    if logits.shape[2:] == size:
        return logits
    resized = np.empty((*logits.shape[:2], *size), np.float32)
    for source, target in zip(
        logits.reshape(-1, *logits.shape[2:]), resized.reshape(-1, *size), strict=True
    ):
        cv2.resize(source, size[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def probabilities(logits: Floats, overlapping: bool) -> Floats:
    """Return each channel's probability, `[B, K, H, W]`: sigmoid, or softmax over the channels."""
    if overlapping:
        return np.asarray(1 / (1 + np.exp(-logits.clip(-80, 80))), np.float32)
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), np.float32)


def entropy(probability: Floats, overlapping: bool) -> Floats:
    """Return how undecided each pixel is, from 0 to 1: `[B, H, W]`.

    The entropy of the classes over its largest possible value; where classes overlap, that of the
    class that is most undecided.
    """
    if overlapping:
        return np.asarray((_surprise(probability) + _surprise(1 - probability)).max(1) / np.log(2))
    return np.asarray(_surprise(probability).sum(1) / np.log(probability.shape[1]), np.float32)


def _surprise(probability: Floats) -> Floats:
    return np.asarray(-probability * np.log(np.maximum(probability, 1e-30)), np.float32)
