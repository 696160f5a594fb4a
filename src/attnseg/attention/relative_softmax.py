r"""Softmax attention with a bias that depends on the offset from query to key, wherever keys lie.

DAT, Xia et al., 2022, arXiv 2201.00520, equation 8:

    softmax(scale Q K^T + phi(B; R)) V

phi reads a learned table B, `[h, 2 H - 1, 2 W - 1]` for a grid H x W, bilinearly at the differences
R of places, as shares of the image. So keys may lie between tokens, and grids may have any size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.bilinear import sample_bilinear
from attnseg.layers.narrow import softmax
from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Place

TABLE_STD = 0.01


class RelativeSoftmax(Mixing):
    """Softmax attention with a table of biases for relative places; prefix tokens have none.

    Sampled keys are measured from the centre of the first token to that of the last, as in DAT;
    keys on a grid, from border to border.
    """

    averages = True
    sees = declare_sight(far=True)
    needs_grid = True

    def __init__(
        self, head_dim: int, num_heads: int, scale: float, place: Place = DEFAULT_PLACE
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        rows, columns = (2 * side - 1 for side in place.grid)
        self.table = nn.Parameter(torch.empty(num_heads, rows, columns))
        nn.init.trunc_normal_(self.table, std=TABLE_STD)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        bias = F.pad(self.biases(layout), (layout.key_prefix, 0, layout.query_prefix, 0))
        # Fused kernels give no gradient to a mask on CPUs, and cannot be exported with one.
        scores = (q * self.scale) @ k.mT + bias.to(q.dtype)
        return softmax(scores, -1).to(v.dtype) @ v

    def start_neutral(self) -> None:
        """Set all biases to 0."""
        nn.init.zeros_(self.table)

    def biases(self, layout: Layout) -> Tensor:
        """Return the biases of the grid's queries and keys, `[B or 1, h, queries, keys]`."""
        if not math.prod(layout.queries):  # A class token asks a context.
            return self.table.new_zeros(1, len(self.table), 0, math.prod(layout.keys))
        queries = torch.cartesian_prod(*(_centres(n, self.table) / n for n in layout.queries))
        away = queries[:, None] - self._key_shares(layout)[:, :, None]  # [B, g, queries, keys, 2]
        rows, columns = (
            (share + 1) * (side - 1)
            for share, side in zip(away.flatten(2, 3).unbind(-1), self.place.grid, strict=True)
        )
        points = torch.stack((rows, columns), -1)
        groups = points.shape[1]
        table = self.table.flatten(1).unflatten(0, (groups, -1)).mT
        values = table.expand(points.shape[0], -1, -1, -1)
        shape = (self.table.shape[1], self.table.shape[2])
        read = sample_bilinear(values, shape, points)
        by_head: Tensor = read.mT.unflatten(3, (math.prod(layout.queries), -1))
        biases: Tensor = by_head.flatten(1, 2)
        return biases

    def _key_shares(self, layout: Layout) -> Tensor:
        """Return row and column of the grid's keys as shares of the image, `[B, g, keys, 2]`."""
        if layout.positions is not None:
            ends = (max(side - 1, 1) for side in layout.queries)
            along = zip(layout.positions.unbind(-1), ends, strict=True)
            return torch.stack([(at - 0.5) / end for at, end in along], -1)
        cell, shares = layout.cell, []
        for keys, queries in zip(layout.keys, layout.queries, strict=True):
            # Keys of a context, which has a grid of its own, have that one's borders.
            span = queries if keys == -(-queries // cell) else keys * cell
            first = cell / 2 if layout.joined else 0.5
            shares.append(((_centres(keys, self.table) - 0.5) * cell + first) / span)
        return torch.cartesian_prod(*shares)[None, None]


def _centres(count: int, like: Tensor) -> Tensor:
    """Return the centres of places along an axis, in places."""
    return torch.arange(count, device=like.device, dtype=like.dtype) + 0.5
