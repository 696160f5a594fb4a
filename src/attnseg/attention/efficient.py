"""Efficient attention: softmax over channels of Q, over tokens of K, then Q (K^T V); linear in N.

Shen et al., 2021, arXiv 1812.01243. Scores are never formed, so there is nothing to scale.
"""

from torch import Tensor

from attnseg.attention.attention import Mixing


class Efficient(Mixing):
    """Values are summed into d global contexts per head, and every query mixes those."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        context = k.softmax(2).transpose(2, 3) @ v
        return q.softmax(3) @ context

    def macs(self, queries: int, keys: int) -> int:
        """Return the multiply-accumulates for one item."""
        return self.num_heads * (queries + keys) * self.head_dim**2
