"""Efficient attention: softmax over channels of Q, over tokens of K, then Q (K^T V); linear in N.

Shen et al., 2021, arXiv 1812.01243. Scores are never formed, so there is nothing to scale.
"""

from torch import Tensor, nn

from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.narrow import softmax
from attnseg.layers.sight import declare_sight


class Efficient(Mixing):
    """Sums the values into d global contexts per head; every query mixes these contexts."""

    averages = True
    # Few contexts, which all queries share, blur neighbours.
    sees = declare_sight(far=True, sharp=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        context = softmax(k, 2).transpose(2, 3) @ v
        return softmax(q, 3) @ context

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates for one item."""
        tokens = layout.query_tokens + layout.key_tokens
        return self.num_heads * tokens * self.head_dim**2

    def absorbed(
        self, q: Tensor, k: Tensor, tokens: Tensor, value: nn.Linear, out: nn.Linear
    ) -> Tensor:
        """Project the d contexts instead of the tokens; shapes as in `Mixing.absorbed`.

        Both softmaxes sum to 1: a context is an average of tokens and the result an average of
        contexts, so that the biases of both projections stay as they are.
        """
        # In this order, the softmax over tokens gets its gradient in its own memory layout.
        context = (tokens.transpose(1, 2) @ softmax(k.squeeze(1), 1)).transpose(1, 2)
        mixed: Tensor = softmax(q.squeeze(1), 2) @ out(value(context))
        return mixed

    def absorbed_macs(self, layout: Layout, value: nn.Linear) -> int:
        """Return the saving for one item; several heads would need too many copies."""
        tokens = layout.query_tokens + layout.key_tokens
        return (tokens - 2 * self.head_dim) * self.head_dim**2 if self.num_heads == 1 else 0
