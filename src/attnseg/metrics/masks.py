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
    return index_masks(decide(logits), logits.shape[1] - 1)


def target_masks(target: Tensor, multilabel: bool, classes: int) -> Tensor:
    """Return a target (see `SegmentationLoss`) as booleans `[B, classes, H, W]`."""
    return target.bool() if multilabel else index_masks(target, classes)


def index_masks(index: Tensor, classes: int) -> Tensor:
    """Return class indices `[B, H, W]`, 0 the background, as booleans `[B, classes, H, W]`."""
    return index[:, None] == torch.arange(1, classes + 1, device=index.device)[:, None, None]


def areas(logits: Tensor, target: Tensor, multilabel: bool) -> Tensor:
    """Count pixels of each slice and class.

    Args:
        logits: `[B, K, H, W]`.
        target: as `SegmentationLoss` takes it.
        multilabel: whether classes overlap.

    Returns:
        `[B, classes, 3]`: pixels in prediction and truth, in the prediction, in the truth.
    """
    if multilabel:
        predicted, true = logits > 0, target.bool()
        return torch.stack([mask.sum((2, 3)) for mask in (predicted & true, predicted, true)], -1)
    # One confusion matrix per slice: a mask per class would take twenty times as long.
    batch, channels = logits.shape[:2]
    slices = torch.arange(batch, device=logits.device)[:, None, None]
    codes = (slices * channels + decide(logits)) * channels + target.long()
    counts = torch.bincount(codes.flatten(), minlength=batch * channels**2)
    matrix = counts.view(batch, channels, channels)
    both = matrix.diagonal(dim1=1, dim2=2)
    return torch.stack([both, matrix.sum(2), matrix.sum(1)], -1)[:, 1:]


def decide(logits: Tensor) -> Tensor:
    """Return the largest channel `[B, H, W]`: `argmax`, which PyTorch does seven times slower."""
    return logits.max(1).indices
