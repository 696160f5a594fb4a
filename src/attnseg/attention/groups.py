"""Local attention: a softmax over a group of keys for each query, the base of several mixings.

    out_i = sum_j softmax_j(s q_i . k_j + b(i - j)) v_j,   j in the group of i

A key outside the group has a weight of exactly 0. Prefix tokens, such as a class token, attend to
all tokens and belong to every group; the bias b, learned by relative position, is not theirs.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.attention.fused import fused_attention
from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.narrow import softmax
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place

# Keys and values of the prefix tokens, [B, h, prefix, d] each.
Prefix = tuple[Tensor, Tensor]


class LocalMixing(Mixing):
    """Lets prefix tokens attend to all tokens; a subclass mixes the tokens of the grid."""

    averages = True
    equal_tokens = True
    needs_grid = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`.

        Raises:
            ValueError: the keys lie on another grid than the queries.
        """
        if layout.queries != layout.keys:
            raise ValueError(
                f"{type(self).__name__} mixing needs keys on the grid of the queries, "
                f"{layout.queries}, got {layout.keys}; use softmax mixing for another context"
            )
        first = layout.query_prefix
        prefix = (k[:, :, :first], v[:, :, :first])
        own_q, own_k, own_v = (x[:, :, first:] for x in (q, k, v))
        mixed = self.mix_grid(own_q, own_k, own_v, prefix, layout.queries)
        if not first:
            return mixed
        of_prefix = fused_attention(q[:, :, :first], k, v, self.scale)
        return torch.cat((of_prefix, mixed), 2)

    def start_neutral(self) -> None:
        """Set the biases of relative positions to 0."""
        for part in self.modules():
            if isinstance(part, RelativeBias):
                nn.init.zeros_(part.table)

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates for one item: 2 d for each score of each head."""
        of_prefix = self.num_heads * layout.query_prefix * layout.key_tokens
        of_grid = self.count_scores(layout.queries, layout.key_prefix)
        return 2 * self.head_dim * (of_prefix + of_grid)

    def mix_grid(self, q: Tensor, k: Tensor, v: Tensor, prefix: Prefix, grid: Grid) -> Tensor:
        """Mix the values of the grid's tokens; all but `prefix` and the grid are `[B, h, N, d]`."""
        raise NotImplementedError

    def count_scores(self, grid: Grid, prefix: int) -> int:
        """Return how many scores `mix_grid` computes for one item, over all heads."""
        raise NotImplementedError


def attend_within(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: Prefix,
    scale: float,
    bias: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Let the queries of each group attend to the group's keys and to the prefix.

    Args:
        q: queries `[B, h, groups, n, d]`.
        k: keys `[B, h, groups, m, d]`.
        v: values, as `k`.
        prefix: keys and values that all groups share.
        scale: factor of the products of queries and keys.
        bias: added to the scores, `[h, 1 or groups, n, m]`.
        allowed: `[groups, n, m]`, `False` where a key must have the weight 0.

    Returns:
        Mixed values `[B, h, groups, n, d]`.
    """
    q = q * scale
    scores = q @ k.mT
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    first = prefix[0].shape[2]
    if first:
        shared = (q.flatten(2, 3) @ prefix[0].mT).unflatten(2, q.shape[2:4])
        scores = torch.cat((shared.to(scores.dtype), scores), -1)
    weights = softmax(scores, -1).to(v.dtype)
    mixed = weights[..., first:] @ v
    if first:
        shared = weights[..., :first].flatten(2, 3) @ prefix[1]
        mixed = mixed + shared.unflatten(2, q.shape[2:4])
    return mixed


class RelativeBias(nn.Module):
    """Learned bias of the scores, a number per head and offset between two tokens.

    The parameter is laid out as Swin's. The gradient is deterministic, on GPUs too: that of
    indexing by a tensor sorts the indices before it adds.

    Args:
        size: offsets run from `1 - size` to `size - 1` along each axis.
        num_heads: h.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Parameter(torch.empty((2 * size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the bias `[h, ...]` of offsets in rows and columns, which are broadcast."""
        index = (rows + self.size - 1) * (2 * self.size - 1) + columns + self.size - 1
        return self.table[index].movedim(-1, 0)


class Cut(NamedTuple):
    """A division of a grid into groups of equal size.

    Zeros are added below and at the right until the groups fill the grid. They form regions of
    their own, and so do, within a group, tokens that the shift brings from the opposite border:
    tokens attend within their region only.

    Attributes:
        grid: height and width of the grid.
        sides: rows and columns of a group.
        shift: rows and columns by which the groups are moved towards the bottom right.
        strided: whether the rows and columns of a group are spread evenly over the whole grid;
            otherwise they are neighbours.
    """

    grid: Grid
    sides: Grid
    shift: Grid = (0, 0)
    strided: bool = False

    @property
    def groups(self) -> Grid:
        """Number of groups along each axis."""
        return -(-self.grid[0] // self.sides[0]), -(-self.grid[1] // self.sides[1])

    @property
    def padded(self) -> Grid:
        """Height and width of the grid with the zeros."""
        return self.groups[0] * self.sides[0], self.groups[1] * self.sides[1]

    def split(self, x: Tensor) -> Tensor:
        """Cut tokens `[B, h, N, d]` into `[B, h, groups, tokens of a group, d]`."""
        below, right = (p - n for p, n in zip(self.padded, self.grid, strict=True))
        x = F.pad(x.unflatten(2, self.grid), (0, 0, 0, right, 0, below))
        x = x.roll((-self.shift[0], -self.shift[1]), (2, 3)) if any(self.shift) else x
        axes = [(self.groups[axis], self.sides[axis]) for axis in (0, 1)]
        if self.strided:
            x = x.unflatten(3, axes[1][::-1]).unflatten(2, axes[0][::-1])
            x = x.permute(0, 1, 3, 5, 2, 4, 6)
        else:
            x = x.unflatten(3, axes[1]).unflatten(2, axes[0]).permute(0, 1, 2, 4, 3, 5, 6)
        return x.flatten(4, 5).flatten(2, 3)

    def join(self, x: Tensor) -> Tensor:
        """Undo `split`, without the zeros."""
        x = x.unflatten(3, self.sides).unflatten(2, self.groups)
        x = x.permute((0, 1, 4, 2, 5, 3, 6) if self.strided else (0, 1, 2, 4, 3, 5, 6))
        x = x.flatten(4, 5).flatten(2, 3)
        x = x.roll(self.shift, (2, 3)) if any(self.shift) else x
        return x[:, :, : self.grid[0], : self.grid[1]].flatten(2, 3)

    def regions(self, device: torch.device) -> Tensor | None:
        """Return which tokens of a group share a region, `[groups, n, n]`; `None` if all do."""
        if self.padded == self.grid and not any(self.shift):
            return None
        rows, columns = (
            torch.arange(n, device=device) < s for n, s in zip(self.grid, self.shift, strict=True)
        )
        labels = 1.0 + rows[:, None] + 2 * columns  # 0 is left to the zeros
        regions = self.split(labels.reshape(1, 1, -1, 1))[0, 0]
        return regions == regions.mT


class GroupMixing(LocalMixing):
    """Mixes within the groups of one or several cuts, each with a part of the heads.

    Args:
        head_dim: d.
        num_heads: h.
        scale: factor of the scores.
        place: where in the model the attention stands.
        bias_size: longest side of a group with a relative position bias; `None` has no bias.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        scale: float,
        place: Place = DEFAULT_PLACE,
        bias_size: int | None = None,
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        if bias_size is not None and bias_size < 1:
            raise ValueError(f"size {bias_size} is not possible; use 1 or more tokens")
        self.bias = None if bias_size is None else RelativeBias(bias_size, num_heads)

    def cuts(self, grid: Grid) -> list[tuple[int, Cut]]:
        """Return cuts of a grid, each with its number of heads, which add up to all heads."""
        raise NotImplementedError

    def mix_grid(self, q: Tensor, k: Tensor, v: Tensor, prefix: Prefix, grid: Grid) -> Tensor:
        """Mix the values of the grid's tokens; see `LocalMixing.mix_grid`."""
        cuts = self.cuts(grid)
        tensors = zip(*(x.split([n for n, _ in cuts], 1) for x in (q, k, v, *prefix)), strict=True)
        mixed = []
        for (_, cut), (*own, prefix_k, prefix_v) in zip(cuts, tensors, strict=True):
            bias = None
            if self.bias is not None:
                rows, columns = (torch.arange(side, device=q.device) for side in cut.sides)
                at = torch.cartesian_prod(rows, columns)
                bias = self.bias(*(at[:, None] - at).unbind(-1))[:, None]
            own_q, own_k, own_v = (cut.split(x) for x in own)
            own_prefix, allowed = (prefix_k, prefix_v), cut.regions(q.device)
            out = attend_within(own_q, own_k, own_v, own_prefix, self.scale, bias, allowed)
            mixed.append(cut.join(out))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, 1)

    def count_scores(self, grid: Grid, prefix: int) -> int:
        """Return how many scores `mix_grid` computes for one item, those of zeros included."""
        return sum(
            heads * math.prod(cut.padded) * (math.prod(cut.sides) + prefix)
            for heads, cut in self.cuts(grid)
        )
