"""Soft Dice loss.

The default form is that of DAE-Former's published code (arXiv 2212.13504) and TransUNet's (arXiv
2102.04306): squared denominator, sums over the whole batch, smoothing 1e-5, background included.

MONAI's loss is not used: it computes the squared form by vector norms, whose float32 error of 3e-5
on two slices of 224x224 misses the loss of the published training step.
"""

import torch
from torch import Tensor

from attnseg.losses.loss import SegmentationLoss, Total, keep_own, mean_over_images


class Dice(SegmentationLoss):
    """One minus soft Dice, mean over classes.

    Args:
        overlapping: see `SegmentationLoss`.
        squared: sum squares in the denominator, `sum(p^2) + sum(g^2)`, not `sum(p) + sum(g)`.
        batch: sum over the whole batch before dividing, not per image.
        smooth: added to numerator and denominator.
        include_background: whether channel 0 of exclusive classes counts.
    """

    adds_sums = True

    def __init__(
        self,
        overlapping: bool,
        squared: bool = True,
        batch: bool = True,
        smooth: float = 1e-5,
        include_background: bool = True,
    ) -> None:
        super().__init__(overlapping)
        self.squared = squared
        self.axes = (0, 2, 3) if batch else (2, 3)
        self.smooth = smooth
        self.first = 0 if include_background or overlapping else 1

    def forward(self, logits: Tensor, target: Tensor, total: Total = keep_own) -> Tensor:
        """Return the scalar loss; shapes and `total` as in `SegmentationLoss`."""
        if self.overlapping:
            p, g = logits.float().sigmoid(), target.float()
        else:
            classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
            p, g = logits.float().softmax(1), (target[:, None] == classes).float()
        p, g = p[:, self.first :], g[:, self.first :]
        overlap = (p * g).sum(self.axes)
        sizes = (p * p if self.squared else p).sum(self.axes) + g.sum(self.axes)
        if 0 in self.axes:
            overlap, sizes = total(torch.stack([overlap, sizes]))
        losses = 1 - (2 * overlap + self.smooth) / (sizes + self.smooth)
        return losses.mean() if 0 in self.axes else mean_over_images(losses, total)
