"""The Dice that is computed after every epoch, from counts per case and class."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class CaseDice(Metric):
    """Computes Dice per case in 3D, from slices in any order.

    Voxels are counted at the network's resolution, so the figure is for monitoring training and not
    for reporting. As in `strict`, a class absent from both a case and its prediction is left out of
    the mean, and one that is missed or spurious scores 0.

    Args:
        cases: number of cases that slices belong to.
        classes: foreground classes.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, cases: int, classes: int, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        # Last axis: intersection, predicted, true.
        zeros = torch.zeros(cases, classes, 3, dtype=torch.long)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, areas: Tensor, case: Tensor) -> None:
        """Add areas of slices, from `count_areas`, `[B, classes, 3]`, to the cases `[B]`."""
        self.counts.index_add_(0, case, areas)

    def compute(self) -> Tensor:
        """Return the mean Dice over cases for each class `[classes]`, NaN if none had it."""
        overlap, predicted, true = self.counts.double().unbind(-1)
        return (2 * overlap / (predicted + true)).nanmean(0)


def count_areas(logits: Tensor, target: Tensor, overlapping: bool) -> Tensor:
    """Count the pixels of each slice and class, from logits `[B, K, H, W]`.

    The target is that of `SegmentationLoss`; `overlapping` is whether a pixel may belong to several
    classes.

    Returns:
        `[B, classes, 3]`: pixels in prediction and truth, in the prediction, in the truth.
    """
    if overlapping:
        predicted, true = logits > 0, target.bool()
        return torch.stack([mask.sum((2, 3)) for mask in (predicted & true, predicted, true)], -1)
    decided = logits.max(1).indices  # PyTorch's argmax takes seven times as long.
    count_pairs = multiply_masks if logits.is_cuda else count_codes
    matrix = count_pairs(decided, target.long(), logits.shape[1])
    both = matrix.diagonal(dim1=1, dim2=2)
    return torch.stack([both, matrix.sum(2), matrix.sum(1)], -1)[:, 1:]


def count_codes(decided: Tensor, target: Tensor, channels: int) -> Tensor:
    """Return the confusion matrices `[B, K, K]` of class indices `[B, H, W]`, fastest on a CPU."""
    batch = len(decided)
    slices = torch.arange(batch, device=decided.device)[:, None, None]
    codes = (slices * channels + decided) * channels + target
    counts = torch.bincount(codes.flatten(), minlength=batch * channels**2)
    return counts.view(batch, channels, channels)


def multiply_masks(decided: Tensor, target: Tensor, channels: int) -> Tensor:
    """Return the same as `count_codes`, without the wait for a GPU that `bincount` causes."""
    classes = torch.arange(channels, device=decided.device)[:, None]
    masks = [(indices.flatten(1)[:, None] == classes).float() for indices in (decided, target)]
    with torch.autocast(decided.device.type, enabled=False):  # It would round the counts.
        return (masks[0] @ masks[1].mT).long()
