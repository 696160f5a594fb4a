"""Cross-entropy, binary per channel where classes overlap."""

from collections.abc import Sequence

from torch import Tensor

from attnseg.losses.loss import CrossEntropyTerm, SegmentationLoss, Total, keep_own


class CrossEntropy(SegmentationLoss):
    """Mean cross-entropy over pixels.

    Args:
        overlapping: see `SegmentationLoss`.
        class_weights: factor of each channel; `None` is 1 for all.
    """

    adds_sums = True

    def __init__(self, overlapping: bool, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(overlapping)
        self.ce = CrossEntropyTerm(overlapping, class_weights)

    def forward(self, logits: Tensor, target: Tensor, total: Total = keep_own) -> Tensor:
        """Return the scalar loss; shapes and `total` as in `SegmentationLoss`."""
        loss: Tensor = self.ce(logits.float(), target, total)
        return loss
