"""Base class of the losses, and the cross-entropy term that several of them use."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Total = Callable[[Tensor], Tensor]  # adds up the tensors of all processes


def keep_own(own: Tensor) -> Tensor:
    """Return the tensor: the sum over the processes of a training that has only one."""
    return own


def mean_over_images(values: Tensor, total: Total, weights: Tensor | None = None) -> Tensor:
    """Return the sum of values divided by their number, or by the sum of weights, of all images."""
    count = values.new_full((), values.numel()) if weights is None else weights.sum()
    sums = total(torch.stack([values.sum(), count]))
    return sums[0] / sums[1]


class SegmentationLoss(nn.Module):
    """A loss of logits against true masks.

    Args:
        overlapping: whether classes may overlap. If so, a sigmoid per channel and a target
            `[B, K, H, W]` of 0 and 1; otherwise a softmax over channels, of which 0 is the
            background, and a target `[B, H, W]` of class indices.

    Where a dataset has a label to ignore, the loss gets the other pixels as one row, B = H = 1.

    Attributes:
        adds_sums: whether `forward` takes a third argument, a `Total`, and applies it to every sum
            over its images. Several processes then exchange these sums; for another loss they
            exchange all logits.
    """

    adds_sums: ClassVar[bool] = False

    def __init__(self, overlapping: bool) -> None:
        super().__init__()
        self.overlapping = overlapping

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of logits `[B, K, H, W]` against a target as described above."""
        raise NotImplementedError

    def monai_target(self, target: Tensor) -> Tensor:
        """Return the target in MONAI's form: float channels, or one channel of class indices."""
        return target.float() if self.overlapping else target[:, None].long()


class CrossEntropyTerm(nn.Module):
    """Cross-entropy, binary per channel if classes overlap; optional weight per channel."""

    weight: Tensor | None

    def __init__(self, overlapping: bool, class_weights: Sequence[float] | None) -> None:
        super().__init__()
        self.overlapping = overlapping
        if class_weights and not (min(class_weights) >= 0 < max(class_weights)):
            raise ValueError(f"class_weights {class_weights} must be 0 or more, not all 0")
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, total: Total = keep_own) -> Tensor:
        """Return the mean cross-entropy; shapes and `total` as in `SegmentationLoss`.

        Raises:
            ValueError: the number of weights differs from the number of channels.
        """
        if self.weight is not None and len(self.weight) != logits.shape[1]:
            raise ValueError(
                f"class_weights has {len(self.weight)} values; give one for each of the "
                f"{logits.shape[1]} channels"
            )
        if self.overlapping:
            weight = None if self.weight is None else self.weight[:, None, None]
            target = target.to(logits.dtype)
            each = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none")
            return mean_over_images(each, total)
        # On CUDA, the mean of `F.cross_entropy` itself adds in any order.
        target = target.long()
        each = F.cross_entropy(logits, target, self.weight, reduction="none")
        return mean_over_images(each, total, None if self.weight is None else self.weight[target])
