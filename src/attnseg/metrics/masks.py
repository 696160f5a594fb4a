"""Logits and targets as one boolean mask per foreground class."""

import torch
from torch import Tensor


def predicted_masks(logits: Tensor, multilabel: bool) -> Tensor:
    """Decide each pixel.

    Args:
        logits: `[B, K, H, W]`.
        multilabel: each channel by itself (probability above 0.5); otherwise the largest channel
            wins and channel 0, the background, is left out.

    Returns:
        Booleans `[B, classes, H, W]`.
    """
    if multilabel:
        return logits > 0
    return index_masks(logits.argmax(1), logits.shape[1] - 1)


def target_masks(target: Tensor, multilabel: bool, classes: int) -> Tensor:
    """Return a target (see `SegmentationLoss`) as booleans `[B, classes, H, W]`."""
    return target.bool() if multilabel else index_masks(target, classes)


def index_masks(index: Tensor, classes: int) -> Tensor:
    """Return class indices `[B, H, W]`, 0 the background, as booleans `[B, classes, H, W]`."""
    return index[:, None] == torch.arange(1, classes + 1, device=index.device)[:, None, None]
