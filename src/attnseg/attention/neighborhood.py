"""Neighbourhood attention: every token attends to the k x k tokens nearest to it.

    out_i = sum_j softmax_j(s q_i . k_j + B(j - i)) v_j,   j in the neighbourhood of i

NAT, Hassani et al., 2023, arXiv 2204.07143, equations 2 to 4; with a dilation, where every n-th
token is taken, DiNAT, Hassani and Shi, 2022, arXiv 2209.15001. At a border, the neighbourhood is
moved inside, so that every token has k x k keys. The bias B is a learned table of (2k - 1)^2
numbers per head.
"""

import torch
from torch import Tensor

from attnseg.attention.groups import LocalMixing, Prefix, RelativeBias, attend_within
from attnseg.attention.mixing import Layout
from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place


class Neighborhood(LocalMixing):
    """Softmax attention to the nearest tokens.

    Keys and values are copied for each query, k^2 N C numbers each. The gradient is deterministic,
    on GPUs too: that of indexing by a tensor sorts the indices before it adds.

    Args:
        head_dim: d.
        num_heads: h.
        scale: factor of the scores.
        place: where in the model the attention stands.
        size: k, the side of a neighbourhood, all of shorter axes; 7 as published.
        dilation: step between its tokens, smaller along axes that are shorter than k steps.

    Raises:
        ValueError: `size` is even or less than 3, or `dilation` is less than 1.
    """

    # Of neighbourhoods of 3 tokens.
    sees = declare_sight(far=False)

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        scale: float,
        place: Place = DEFAULT_PLACE,
        size: int = 7,
        dilation: int = 1,
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        if size < 3 or size % 2 == 0:
            raise ValueError(f"size {size} has no middle token; use 3, 5, 7, ...")
        if dilation < 1:
            raise ValueError(f"dilation {dilation} is not possible; use 1 or more")
        self.size = size
        self.dilation = dilation
        self.bias = RelativeBias(size, num_heads)

    def mix_grid(self, q: Tensor, k: Tensor, v: Tensor, prefix: Prefix, grid: Grid) -> Tensor:
        """Mix the values of the grid's tokens; see `LocalMixing.mix_grid`."""
        rows, row_offsets = self._nearest(grid[0], q.device)
        columns, column_offsets = self._nearest(grid[1], q.device)
        near = rows[:, None, :, None] * grid[1] + columns[:, None]  # [H, W, k, k]
        near = near.flatten(2).flatten(0, 1)
        bias = self.bias(row_offsets[:, None, :, None], column_offsets[:, None])
        bias = bias.flatten(3).flatten(1, 2)[:, :, None]
        q, k, v = q[:, :, :, None], k[:, :, near], v[:, :, near]
        return attend_within(q, k, v, prefix, self.scale, bias)[:, :, :, 0]

    def _nearest(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the keys of each token of an axis, and their offsets in steps, `[length, k]`."""
        count = min(self.size, length)
        step = min(self.dilation, length // count)
        token = torch.arange(length, device=device)[:, None]
        # Tokens that are whole steps apart form a series; a neighbourhood is a run of one.
        at, series = token // step, token % step
        last = (length - 1 - series) // step
        start = torch.minimum((at - count // 2).clamp_min(0), last + 1 - count)
        offsets = start + torch.arange(count, device=device) - at
        return token + step * offsets, offsets

    def count_scores(self, grid: Grid, prefix: int) -> int:
        """Return how many scores `mix_grid` computes for one item, over all heads."""
        near = min(self.size, grid[0]) * min(self.size, grid[1])
        return self.num_heads * grid[0] * grid[1] * (near + prefix)

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates for one item: 2 k^2 N C."""
        return super().macs(layout)
