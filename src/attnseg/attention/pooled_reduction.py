"""Spatial reduction of keys and values by average pooling to a fixed grid: PVTv2's linear SRA.

Wang et al., 2022, arXiv 2106.13797, equation 3 and section 3.1:

    X' = GELU(LN(Linear(AvgPool_{P x P}(X)))),   K = X' W_K,   V = X' W_V

with P = 7, so that the cost of the attention is linear in the number of tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.attention.gather import Gather, Gathered
from attnseg.layers.narrow import LayerNorm
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place

NORM_EPS = 1e-5


class PooledReduction(Gather):
    """Averages the grid's tokens over P x P cells, then maps every token by a small layer.

    Cells overlap by one token where P does not divide the grid; a side of less than P tokens is not
    pooled. Prefix tokens are not pooled, but mapped like the others.

    The mean is a product with a fixed matrix: PyTorch's adaptive pooling has no deterministic
    gradient on CUDA.

    Args:
        dim: C, the width of the tokens.
        num_heads: h.
        place: where in the model the attention stands.
        size: P.

    Raises:
        ValueError: the size is below 1.
    """

    def __init__(
        self, dim: int, num_heads: int, place: Place = DEFAULT_PLACE, size: int = 7
    ) -> None:
        super().__init__(dim, num_heads, place)
        if size < 1:
            raise ValueError(f"size {size} must be 1 or more")
        self.size = size
        self.linear = nn.Linear(dim, dim)
        self.norm = LayerNorm(dim, eps=NORM_EPS)

    def forward(self, tokens: Tensor, grid: Grid, queries: Tensor, query_grid: Grid) -> Gathered:
        """Gather tokens; see `Gather.forward`."""
        prefix, patches = tokens.split((tokens.shape[1] - grid[0] * grid[1], grid[0] * grid[1]), 1)
        pooled = patches.unflatten(1, grid).flatten(2)  # [B, h, w C]
        rows, columns = (self._cells(side, tokens.device) for side in grid)
        pooled = (_means(rows, grid[0]).to(pooled) @ pooled).unflatten(2, (grid[1], self.dim))
        pooled = (_means(columns, grid[1]).to(pooled) @ pooled).flatten(1, 2)
        mapped = F.gelu(self.norm(self.linear(torch.cat((prefix, pooled), 1))))
        small, cell = self._pooled_grid(grid), grid[0] // self._pooled_grid(grid)[0]
        if grid == (small[0] * cell, small[1] * cell):
            return Gathered(mapped, small, cell, joined=True)
        centres = torch.cartesian_prod(*(cells.float().mean(1) for cells in (rows, columns)))
        return Gathered(mapped, small, joined=True, positions=centres[None, None])

    def macs(self, tokens: int, grid: Grid) -> tuple[int, int, Grid]:
        """Return `p w C (h + q) + M C^2` for a grid h x w, pooled to p x q, and M tokens left."""
        height, width = self._pooled_grid(grid)
        left = tokens - grid[0] * grid[1] + height * width
        pooling = height * grid[1] * self.dim * (grid[0] + width)
        return pooling + left * self.dim**2, left, (height, width)

    def _pooled_grid(self, grid: Grid) -> Grid:
        return min(self.size, grid[0]), min(self.size, grid[1])

    def _cells(self, side: int, device: torch.device) -> Tensor:
        """Return the first token of each cell of a side, and the one after its last: `[P, 2]`."""
        pooled = min(self.size, side)
        at = torch.arange(pooled, device=device)
        return torch.stack((at * side // pooled, ((at + 1) * side + pooled - 1) // pooled), 1)


def _means(cells: Tensor, side: int) -> Tensor:
    """Return the matrix `[P, side]` that averages the tokens of each of the cells `[P, 2]`."""
    at = torch.arange(side, device=cells.device)
    inside = ((at >= cells[:, :1]) & (at < cells[:, 1:])).double()
    return inside / inside.sum(1, keepdim=True)
