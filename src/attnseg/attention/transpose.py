"""Transpose attention: channels attend to channels, linear in N.

Cross-covariance attention of XCiT, El-Nouby et al., 2021, arXiv 2106.09681: queries and keys are
normalised along the tokens, and a learned temperature per head takes the place of the scale.
"""

import torch
from torch import Tensor, nn

from attnseg.attention.channel_group import ChannelGroup, sum_products
from attnseg.layers.tokens import DEFAULT_PLACE, Place

MIN_NORM = 1e-12  # as in `torch.nn.functional.normalize`


class Transpose(ChannelGroup):
    """Replaces every channel of a head by a convex combination of that head's channels."""

    def __init__(
        self, head_dim: int, num_heads: int, scale: float, place: Place = DEFAULT_PLACE
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the weights; shapes as in `ChannelGroup`."""
        # The norms divide the d x d scores, which are smaller than the N x d queries and keys.
        scores = sum_products(q, k) / channel_norms(q).transpose(2, 3) / channel_norms(k)
        weights: Tensor = (scores * self.temperature).softmax(3).to(k.dtype)
        return weights


def channel_norms(x: Tensor) -> Tensor:
    """Return the norm of each channel over the tokens of `[B, h, N, d]`: `[B, h, 1, d]`.

    Norms are of float32 or wider, and their gradient is 0, not NaN, where a channel is all 0.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.square().sum(2, keepdim=True).clamp_min(MIN_NORM**2).sqrt()
