"""Focal loss: cross-entropy in which easy pixels have little weight.

Lin et al., 2017, arXiv 1708.02002.
"""

from monai.losses.focal_loss import FocalLoss
from torch import Tensor

from attnseg.losses.loss import SegmentationLoss, Total, keep_own, mean_over_images


class Focal(SegmentationLoss):
    """`(1 - p)^gamma` times cross-entropy, mean over pixels and classes.

    Args:
        overlapping: see `SegmentationLoss`.
        gamma: how fast the weight of well-classified pixels falls; 0 is cross-entropy.
        alpha: weight of the positive pixels, in [0, 1]; `None` gives all pixels the same weight.
    """

    adds_sums = True

    def __init__(self, overlapping: bool, gamma: float = 2.0, alpha: float | None = None) -> None:
        super().__init__(overlapping)
        if gamma < 0:
            raise ValueError(f"gamma {gamma} is negative; use 0 or more")
        self.focal = FocalLoss(
            to_onehot_y=not overlapping,
            gamma=gamma,
            alpha=alpha,
            use_softmax=not overlapping,
            reduction="none",
        )

    def forward(self, logits: Tensor, target: Tensor, total: Total = keep_own) -> Tensor:
        """Return the scalar loss; shapes and `total` as in `SegmentationLoss`."""
        return mean_over_images(self.focal(logits.float(), self.monai_target(target)), total)
