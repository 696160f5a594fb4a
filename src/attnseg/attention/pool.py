"""Average pooling in the place of attention: a null control without parameters.

MetaFormer, Yu et al., 2022, arXiv 2111.11418, equation 4 (PoolFormer).
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.sight import Sees
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place, TokenMixer
from attnseg.layers.vit import tokens_to_map


class Pool(TokenMixer):
    """Replaces every token by the mean of its neighbourhood, minus itself.

    The block adds the token again, so that the mean remains. Neighbours beyond the grid do not
    count. Prefix tokens have no neighbours: their mean is themselves, and the difference is 0.

    Args:
        dim: C, the width of the tokens.
        num_heads: ignored, as are `bias`, `scale` and `projection`.
        bias: ignored.
        scale: ignored.
        projection: ignored.
        place: where in the model the mixer stands.
        size: side of the neighbourhood, in tokens; odd.

    Raises:
        ValueError: the size is even or below 1.
    """

    # Two blocks and the head reach some arrows and rims of organs, but not all.
    sees: ClassVar[Sees] = {"far_place": False, "far_appearance": False, "reach": False}
    mixes_prefix = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: bool = True,
        scale: float | None = None,
        projection: Callable[[int, bool], nn.Module] | None = None,
        place: Place = DEFAULT_PLACE,
        size: int = 3,
    ) -> None:
        super().__init__(dim, num_heads, bias, scale, projection, place)
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size {size} must be odd and positive")
        self.size = size

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        context: Tensor | None = None,
        context_grid: Grid | None = None,
    ) -> Tensor:
        """Return the differences of the means; see `TokenMixer.forward`."""
        if context is not None:
            raise ValueError("pool takes no context")
        patches = tokens_to_map(x, grid)
        means = F.avg_pool2d(patches, self.size, 1, self.size // 2, count_include_pad=False)
        prefix = x[:, : x.shape[1] - grid[0] * grid[1]]
        return torch.cat((torch.zeros_like(prefix), (means - patches).flatten(2).mT), 1)

    def macs(
        self, tokens: int, grid: Grid, context: int | None = None, context_grid: Grid | None = None
    ) -> int:
        """Return 0: means are sums without a product."""
        return 0
