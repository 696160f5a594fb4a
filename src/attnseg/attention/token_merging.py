r"""Softmax attention between merged tokens, each of which stands for all tokens merged into it.

Token merging (ToMe), Bolya et al., 2023, arXiv 2210.09461, section 3; merged before an attention
and taken apart after it as in Bolya and Hoffman, 2023, arXiv 2303.17604, section 4.

The grid's tokens are matched by their keys, averaged over the heads; see `match_tokens`. Queries,
keys and values of the tokens that come together are averaged. A merged key of s tokens has the
weight of s in the softmax (equation 1):

    softmax(scale Q K^T + log s) V

Every former token takes the result of the token that it became. The output is linear in the values,
since matching depends on the keys alone; the matching has no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnseg.attention.fused import AUTO, fused_attention
from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.matching import copy_tokens, match_tokens, sum_tokens
from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Place


class TokenMerging(Mixing):
    """Softmax attention with a share of the tokens merged; prefix tokens are never merged.

    Queries that are other tokens than the keys are not merged.

    On CUDA sums and copies have deterministic gradients; see `attnseg.layers.matching`.

    Args:
        head_dim: d.
        num_heads: h.
        scale: factor of the scores.
        place: where in the model the attention stands.
        ratio: share of the grid's keys that are merged into others, at most 0.5, since half of the
            keys are never merged into others.

    Raises:
        ValueError: the ratio is not between 0 and 0.5.
    """

    averages = True
    fused = True
    sees = declare_sight(far=True)

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        scale: float,
        place: Place = DEFAULT_PLACE,
        ratio: float = 0.25,
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        if not 0 <= ratio <= 0.5:
            raise ValueError(f"ratio {ratio} must be between 0 and 0.5")
        self.ratio = ratio

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        merged = self._merged(layout)
        if merged == 0:
            return fused_attention(q, k, v, self.scale, self.backend)
        prefix = layout.key_prefix
        targets = match_tokens(k[:, :, prefix:].mean(1), merged)
        own = torch.arange(prefix, device=k.device).expand(k.shape[0], -1)
        targets, left = torch.cat((own, targets + prefix), 1), k.shape[2] - merged
        # In 16 bits, sums of many tokens would overflow, and counts would be rounded.
        wide = torch.promote_types(k.dtype, torch.float32)
        sizes = sum_tokens(torch.ones_like(k[:, :1, :, :1], dtype=wide), targets, left)

        def average(tokens: Tensor) -> Tensor:
            return (sum_tokens(tokens.to(wide), targets, left) / sizes).to(tokens.dtype)

        k, v = average(k), average(v)
        together = _same_tokens(layout) and q.shape[2] == layout.query_tokens
        if together:
            q = average(q)
        weights = sizes.log()[..., 0]
        if q.is_cuda or self.backend != AUTO:
            out = fused_attention(q, k, v, self.scale, self.backend, weights)
        else:  # Without a gradient, a mask is faster on CPUs than a longer query.
            mask = weights[:, :, None].to(q.dtype).expand(-1, -1, q.shape[2], -1)
            out = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale)
        return copy_tokens(out, targets) if together else out

    def macs(self, layout: Layout) -> int:
        """Return `2 C N' M' + d |A| |B|`, for N' queries and M' keys that are left."""
        merged = self._merged(layout)
        queries, keys = layout.query_tokens, layout.key_tokens - merged
        queries -= merged if _same_tokens(layout) else 0
        grid = layout.keys[0] * layout.keys[1]
        matching = (grid // 2) * (grid - grid // 2) * self.head_dim if merged else 0
        return 2 * self.num_heads * queries * keys * self.head_dim + matching

    def _merged(self, layout: Layout) -> int:
        """Return r, how many keys are merged into others."""
        return int(self.ratio * layout.keys[0] * layout.keys[1])


def _same_tokens(layout: Layout) -> bool:
    return (
        not layout.of_context
        and (layout.queries, layout.query_prefix) == (layout.keys, layout.key_prefix)
        and layout.cell == 1
        and layout.positions is None
    )
