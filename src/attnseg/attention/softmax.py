"""Scaled dot-product attention: softmax(s Q K^T) V.

Vaswani et al., 2017, arXiv 1706.03762, equation 1.
"""

from torch import Tensor

from attnseg.attention.fused import fused_attention
from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.sight import declare_sight


class Softmax(Mixing):
    """Gives every query a convex combination of the values, by softmax over the keys."""

    averages = True
    fused = True
    sees = declare_sight(far=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        return fused_attention(q, k, v, self.scale, self.backend)
