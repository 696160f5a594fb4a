"""Spatial reduction of keys and values by a strided convolution: PVT's SRA, MISSFormer's ESA.

Wang et al., 2021, arXiv 2102.12122, equations 2 and 3; Huang et al., 2021, arXiv 2109.07162,
equation 2:

    X' = LN(Conv_{R x R, stride R}(X)),   K = X' W_K,   V = X' W_V

so that N tokens have N / R^2 keys. R = 1 has neither convolution nor norm, as published.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.attention.gather import Gather, Gathered
from attnseg.layers.narrow import LayerNorm
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place
from attnseg.layers.vit import tokens_to_map

KEYS = 7  # along the shorter side of the grid; PVT's ratios leave as many at 224 pixels
NORM_EPS = 1e-5


class SpatialReduction(Gather):
    """Makes one token of every R x R tokens; zeros complete a grid that R does not divide.

    Prefix tokens skip the convolution and are normalised like the others.

    Args:
        dim: C, the width of the tokens.
        num_heads: h.
        place: where in the model the attention stands.
        ratio: R, or one R for each stage, of which the last holds for all further stages; `None`
            leaves at most 7 tokens along the shorter side of the place's grid: R = 8, 4, 2, 1 for
            grids of 56, 28, 14 and 7 tokens, as published.

    Raises:
        ValueError: there is no ratio, or one is below 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        place: Place = DEFAULT_PLACE,
        ratio: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(dim, num_heads, place)
        by_grid = -(-min(place.grid) // KEYS) if ratio is None else ratio
        ratios = [by_grid] if isinstance(by_grid, int) else by_grid
        if not ratios or min(ratios) < 1:
            raise ValueError(f"ratio {ratio} must hold numbers of 1 or more, such as 8, 4, 2, 1")
        self.ratio = ratios[min(place.stage, len(ratios) - 1)]
        self.keeps_all = self.ratio == 1
        if not self.keeps_all:
            self.conv = nn.Conv2d(dim, dim, self.ratio, self.ratio)
            self.norm = LayerNorm(dim, eps=NORM_EPS)

    def forward(self, tokens: Tensor, grid: Grid, queries: Tensor, query_grid: Grid) -> Gathered:
        """Gather tokens; see `Gather.forward`."""
        if self.keeps_all:
            return Gathered(tokens, grid)
        (height, width), r = grid, self.ratio
        patches = F.pad(tokens_to_map(tokens, grid), (0, -width % r, 0, -height % r))
        reduced = self.conv(patches)
        prefix = tokens[:, : tokens.shape[1] - height * width]
        joined = torch.cat((prefix, reduced.flatten(2).mT), 1)
        return Gathered(self.norm(joined), (reduced.shape[2], reduced.shape[3]), r, joined=True)

    def macs(self, tokens: int, grid: Grid) -> tuple[int, int, Grid]:
        """Return the convolution's `M R^2 C^2` for M = ceil(h / R) ceil(w / R); 0 for R = 1."""
        if self.keeps_all:
            return 0, tokens, grid
        height, width = (-(-side // self.ratio) for side in grid)
        places = height * width
        prefix = tokens - grid[0] * grid[1]
        return places * (self.ratio * self.dim) ** 2, prefix + places, (height, width)
