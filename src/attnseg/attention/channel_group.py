"""Channel group attention: within each head, channels attend to channels; linear in N.

DaViT, Ding et al., 2022, arXiv 2204.03645, equation 3: A(Q, K, V) = (softmax(s Q^T K) V^T)^T, with
s = (C / h)^-1/2 as in the published code. That code calls K, V and Q what are Q, K and V here.
"""

import torch
from torch import Tensor, nn

from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.sight import declare_sight


class ChannelGroup(Mixing):
    """Replaces every channel of a head by a convex combination of that head's channels.

    The groups of the paper are the heads.
    """

    # One matrix for the whole picture carries a fact, but not another one for each token.
    sees = declare_sight(far=True, sharp=False)
    equal_tokens = True

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
        """Return the multiply-accumulates for one item: 2 h N d^2."""
        return 2 * self.num_heads * layout.query_tokens * self.head_dim**2

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the weights `[B, h, d, d]` with which channels (rows) mix channels (columns)."""
        return sum_products(q * self.scale, k).softmax(3).to(k.dtype)


def sum_products(q: Tensor, k: Tensor) -> Tensor:
    """Return the sums of `q k` over the tokens of `[B, h, N, d]`: `[B, h, d, d]`.

    Sums of many float16 products would overflow: they are returned as float32.
    """
    # Queries that are contiguous within a head can be transposed without another copy.
    if q.dtype != torch.float16:
        return q.contiguous().transpose(2, 3) @ k
    share = float(q.shape[2] ** -0.5)
    return ((q * share).contiguous().transpose(2, 3) @ k).float() / share
