"""Soft Dice loss.

The default form is that of DAE-Former's published code (arXiv 2212.13504) and TransUNet's (arXiv
2102.04306): squared denominator, sums over the whole batch, smoothing 1e-5, background included.
"""

from monai.losses.dice import DiceLoss
from torch import Tensor

from attnseg.losses.loss import SegmentationLoss


class Dice(SegmentationLoss):
    """One minus soft Dice, mean over classes.

    Args:
        multilabel: see `SegmentationLoss`.
        squared: sum squares in the denominator, `sum(p^2) + sum(g^2)`, not `sum(p) + sum(g)`.
        batch: sum over the whole batch before dividing, not per image.
        smooth: added to numerator and denominator.
        include_background: whether channel 0 of exclusive classes counts.
    """

    def __init__(
        self,
        multilabel: bool,
        squared: bool = True,
        batch: bool = True,
        smooth: float = 1e-5,
        include_background: bool = True,
    ) -> None:
        super().__init__(multilabel)
        self.dice = DiceLoss(
            include_background=include_background or multilabel,
            to_onehot_y=not multilabel,
            sigmoid=multilabel,
            softmax=not multilabel,
            squared_pred=squared,
            smooth_nr=smooth,
            smooth_dr=smooth,
            batch=batch,
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss; shapes as in `SegmentationLoss`."""
        loss: Tensor = self.dice(logits.float(), self.monai_target(target))
        return loss
