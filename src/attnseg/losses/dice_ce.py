"""Weighted sum of soft Dice and cross-entropy: 0.6 and 0.4 in DAE-Former (arXiv 2212.13504)."""

from collections.abc import Sequence

from torch import Tensor

from attnseg.losses.dice import Dice
from attnseg.losses.loss import CrossEntropyTerm, SegmentationLoss, Total, keep_own


class DiceCE(SegmentationLoss):
    """`dice_weight * Dice + ce_weight * cross-entropy`, binary per channel if classes overlap.

    Args:
        overlapping: see `SegmentationLoss`.
        dice_weight: factor of the Dice loss.
        ce_weight: factor of the cross-entropy.
        squared, batch, smooth, include_background: as in `Dice`.
        class_weights: factor of each channel's cross-entropy; `None` is 1 for all.
    """

    adds_sums = True

    def __init__(
        self,
        overlapping: bool,
        dice_weight: float = 0.6,
        ce_weight: float = 0.4,
        squared: bool = True,
        batch: bool = True,
        smooth: float = 1e-5,
        include_background: bool = True,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(overlapping)
        if dice_weight < 0 or ce_weight < 0 or dice_weight + ce_weight == 0:
            raise ValueError(
                f"dice_weight {dice_weight} and ce_weight {ce_weight} must be 0 or more, not both 0"
            )
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight
        self.dice = Dice(overlapping, squared, batch, smooth, include_background)
        self.ce = CrossEntropyTerm(overlapping, class_weights)

    def forward(self, logits: Tensor, target: Tensor, total: Total = keep_own) -> Tensor:
        """Return the scalar loss; shapes and `total` as in `SegmentationLoss`."""
        dice: Tensor = self.dice(logits, target, total)
        ce: Tensor = self.ce(logits.float(), target, total)
        return self.dice_weight * dice + self.ce_weight * ce
