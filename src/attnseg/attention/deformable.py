r"""Keys and values from places that the queries choose: deformable attention (DAT).

Xia et al., 2022, arXiv 2201.00520, section 3.2. Reference points p lie at the centres of a regular
grid H' x W' over the image. For each group of heads, a small network on the queries moves them:

    p' = p + s tanh(Linear(GELU(LN(DWConv_{k x k, stride r}(q))))) / (H', W'),   X' = X(p')

where X(p') is the bilinear interpolation of the tokens, and keys and values are projections of X'.
Coordinates run from -1 to 1. What the paper leaves open follows the published code: -1 and 1 are
the borders of the image for reference points, but the centres of the outer tokens for sampling.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.attention.gather import Gather, Gathered
from attnseg.layers.bilinear import sample_bilinear
from attnseg.layers.narrow import LayerNorm
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place
from attnseg.layers.vit import tokens_to_map

HEADS_PER_GROUP = 4  # of DAT-T, in its third and fourth stage
NORM_EPS = 1e-5


class Deformable(Gather):
    """Samples tokens at learned places; prefix tokens are kept, and choose no places.

    The gradients on CUDA have deterministic forms; see `sample_bilinear`.

    Args:
        dim: C, the width of the tokens.
        num_heads: h.
        place: where in the model the attention stands.
        groups: number of groups of heads with places of their own; must divide h. `None` is a
            quarter of h, as published, or the next smaller number that divides h.
        kernel: k, an odd number.
        stride: r, query tokens per reference point along each axis, or one r for each stage, of
            which the last holds for all further stages.
        offset_range: s, the largest offset, in halves of a cell of the reference points.

    Raises:
        ValueError: the groups do not divide the heads, the kernel is even, or a stride is below 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        place: Place = DEFAULT_PLACE,
        groups: int | None = None,
        kernel: int = 5,
        stride: int | Sequence[int] = 1,
        offset_range: float = 2.0,
    ) -> None:
        super().__init__(dim, num_heads, place)
        most = max(1, num_heads // HEADS_PER_GROUP)
        published = next(g for g in range(most, 0, -1) if num_heads % g == 0)
        self.groups = published if groups is None else groups
        strides = [stride] if isinstance(stride, int) else stride
        if self.groups < 1 or num_heads % self.groups:
            raise ValueError(f"groups {groups} must divide the number of heads, {num_heads}")
        if kernel < 1 or kernel % 2 == 0 or not strides or min(strides) < 1:
            raise ValueError(
                f"kernel {kernel} must be odd and positive, and stride {stride} 1 or more"
            )
        self.stride = strides[min(place.stage, len(strides) - 1)]
        self.offset_range = offset_range
        width = dim // self.groups
        self.conv = nn.Conv2d(width, width, kernel, self.stride, kernel // 2, groups=width)
        self.norm = LayerNorm(width, eps=NORM_EPS)
        self.linear = nn.Linear(width, 2, bias=False)

    def forward(self, tokens: Tensor, grid: Grid, queries: Tensor, query_grid: Grid) -> Gathered:
        """Gather tokens; see `Gather.forward`.

        Raises:
            ValueError: the queries lie on another grid than the tokens.
        """
        if query_grid != grid:
            raise ValueError(
                f"deformable needs queries and tokens on one grid, got {query_grid} and {grid}; "
                "use gather=none for a context"
            )
        by_group = tokens_to_map(queries, grid).unflatten(1, (self.groups, -1)).flatten(0, 1)
        features = self.conv(by_group)
        small = (features.shape[2], features.shape[3])
        moves = self.linear(F.gelu(self.norm(features.flatten(2).mT)))
        # Lower precision would round places by a sizeable part of a token.
        moves = moves.to(torch.promote_types(moves.dtype, torch.float32)).tanh()
        moves = moves.unflatten(1, small)
        points = []
        for axis, (n, side) in enumerate(zip(small, grid, strict=True)):
            regular = (torch.arange(n, device=tokens.device) + 0.5).unsqueeze(1 - axis)
            moved = (regular + moves[..., axis] * (self.offset_range / 2)) / n
            points.append(moved.flatten(1) * (side - 1))
        places = torch.stack(points, -1).unflatten(0, (-1, self.groups))
        prefix, patches = tokens.split((tokens.shape[1] - math.prod(grid), math.prod(grid)), 1)
        values = patches.unflatten(2, (self.groups, -1)).transpose(1, 2)
        sampled = sample_bilinear(values, grid, places).transpose(1, 2).flatten(2)
        return Gathered(torch.cat((prefix, sampled), 1), small, self.stride, False, places + 0.5)

    def macs(self, tokens: int, grid: Grid) -> tuple[int, int, Grid]:
        """Return `M C (k^2 + 2)` for M reference points; sampling has no matrix product."""
        small = (-(-grid[0] // self.stride), -(-grid[1] // self.stride))
        points = math.prod(small)
        offsets = points * self.dim * (self.conv.kernel_size[0] ** 2 + 2)
        return offsets, tokens - math.prod(grid) + points, small
