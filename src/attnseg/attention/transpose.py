"""Transpose attention: channels attend to channels, linear in N.

Cross-covariance attention of XCiT, El-Nouby et al., 2021, arXiv 2106.09681: queries and keys are
normalised along the tokens, and a learned temperature per head takes the place of the scale.
"""

import torch
from torch import Tensor, nn

from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.tokens import DEFAULT_PLACE, Place

MIN_NORM = 1e-12  # as in `torch.nn.functional.normalize`


class Transpose(Mixing):
    """Replaces every channel of a head by a convex combination of that head's channels."""

    equal_tokens = True

    def __init__(
        self, head_dim: int, num_heads: int, scale: float, place: Place = DEFAULT_PLACE
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        mixed: Tensor = v @ self._weights(q, k).transpose(2, 3)
        return mixed

    def absorbed(
        self, q: Tensor, k: Tensor, tokens: Tensor, value: nn.Linear, out: nn.Linear
    ) -> Tensor:
        """Mix the rows of the value weights instead of the values.

        Shapes as in `Mixing.absorbed`.
        """
        weights = self._weights(q, k)  # [B, h, d, d]
        heads = (self.num_heads, self.head_dim)
        joined = out.weight @ (weights @ value.weight.unflatten(0, heads)).flatten(1, 2)
        bias = out.bias
        if value.bias is not None:
            bias = out((weights @ value.bias.unflatten(0, heads)[..., None]).flatten(1))[:, None]
        mixed: Tensor = tokens @ joined.transpose(1, 2)
        return mixed if bias is None else mixed + bias

    def absorbed_macs(self, layout: Layout, value: nn.Linear) -> int:
        """Return the saving for one item."""
        rows = layout.query_tokens - value.in_features - (value.bias is not None)
        return rows * value.in_features * (value.in_features + self.head_dim)

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates for one item."""
        return 2 * self.num_heads * layout.query_tokens * self.head_dim**2

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the weights `[B, h, d, d]` with which channels (rows) mix channels (columns)."""
        # The norms divide the d x d scores, which are smaller than the N x d queries and keys. A
        # head's queries are made contiguous first; their transpose then needs no copy.
        scores = q.contiguous().transpose(2, 3) @ k
        scores = scores / channel_norms(q).transpose(2, 3) / channel_norms(k)
        weights: Tensor = (scores * self.temperature).softmax(3)
        return weights


def channel_norms(x: Tensor) -> Tensor:
    """Return the norm of each channel over the tokens of `[B, h, N, d]`: `[B, h, 1, d]`.

    Norms are of float32 or wider, and their gradient is 0, not NaN, where a channel is all 0.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.square().sum(2, keepdim=True).clamp_min(MIN_NORM**2).sqrt()
