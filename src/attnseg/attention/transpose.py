"""Transpose attention: channels attend to channels, linear in N.

Cross-covariance attention of XCiT, El-Nouby et al., 2021, arXiv 2106.09681: queries and keys are
normalised along the tokens, and a learned temperature per head takes the place of the scale.
"""

import torch
from torch import Tensor, nn

from attnseg.attention.attention import Mixing

EPS = 1e-12  # the shortest length, as in `torch.nn.functional.normalize`


class Transpose(Mixing):
    """Every channel of a head takes a convex combination of that head's channels."""

    equal_tokens = True

    def __init__(self, head_dim: int, num_heads: int, scale: float) -> None:
        super().__init__(head_dim, num_heads, scale)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`.

        Raises:
            ValueError: the number of query and key tokens differs.
        """
        if q.shape[2] != k.shape[2]:
            raise ValueError(
                f"transpose mixing needs as many query as key tokens, got {q.shape[2]} and "
                f"{k.shape[2]}; project both with the same stride"
            )
        # The channels' lengths divide the scores, d x d, not queries and keys, N x d. The tokens of
        # a head are laid side by side before they are transposed, which then copies nothing.
        scores = q.contiguous().transpose(2, 3) @ k / lengths(q).transpose(2, 3) / lengths(k)
        weights = (scores * self.temperature).softmax(3)
        return v @ weights.transpose(2, 3)

    def macs(self, queries: int, keys: int) -> int:
        """Return the multiply-accumulates for one item."""
        return 2 * self.num_heads * queries * self.head_dim**2


def lengths(x: Tensor) -> Tensor:
    """Return each channel's length over the tokens of `[B, h, N, d]`: `[B, h, 1, d]`."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # PyTorch's norm along an inner axis takes several times as long as a sum of squares.
    return x.square().sum(2, keepdim=True).clamp_min(EPS**2).sqrt()
