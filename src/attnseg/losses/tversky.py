"""Tversky loss: Dice with separate weights for false positives and false negatives.

Salehi et al., 2017, arXiv 1706.05721.
"""

from monai.losses.tversky import TverskyLoss
from torch import Tensor

from attnseg.losses.loss import SegmentationLoss


class Tversky(SegmentationLoss):
    """One minus `tp / (tp + alpha fp + beta fn)`, mean over classes.

    Args:
        overlapping: see `SegmentationLoss`.
        alpha: weight of false positives.
        beta: weight of false negatives; best in the paper: 0.7, with an alpha of 0.3.
        batch: sum over the whole batch before dividing, not per image.
        smooth: added to numerator and denominator.
    """

    def __init__(
        self,
        overlapping: bool,
        alpha: float = 0.3,
        beta: float = 0.7,
        batch: bool = True,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(overlapping)
        if alpha < 0 or beta < 0 or alpha + beta == 0:
            raise ValueError(f"alpha {alpha} and beta {beta} must be at least 0, not both 0")
        self.tversky = TverskyLoss(
            to_onehot_y=not overlapping,
            sigmoid=overlapping,
            softmax=not overlapping,
            alpha=alpha,
            beta=beta,
            smooth_nr=smooth,
            smooth_dr=smooth,
            batch=batch,
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss; shapes as in `SegmentationLoss`."""
        loss: Tensor = self.tversky(logits.float(), self.monai_target(target))
        return loss
