"""Grid attention: softmax among g x g tokens that are spread evenly over the whole image.

    out_i = sum_j softmax_j(s q_i . k_j + B(i - j)) v_j,   j = i modulo (H / g, W / g)

MaxViT, Tu et al., 2022, arXiv 2204.01697, section 3.2, there after attention in windows ("block
attention", here `window`). The bias B is a learned table of (2g - 1)^2 numbers per head, of offsets
counted in strides.
"""

from typing import ClassVar

from attnseg.attention.groups import Cut, GroupMixing
from attnseg.attention.mixing import Layout
from attnseg.layers.sight import Sees
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place


class GridAttention(GroupMixing):
    """Softmax attention over a coarse grid through every token.

    Where g does not divide the grid, zeros are added below and at the right, to which no token
    attends.

    Args:
        head_dim: d.
        num_heads: h.
        scale: factor of the scores.
        place: where in the model the attention stands.
        size: g, the tokens of a group along each axis, all of shorter axes; 7 as published.

    Raises:
        ValueError: `size` is less than 1.
    """

    # Tokens of a group are spread over the whole grid; distances between groups are not seen.
    sees: ClassVar[Sees] = {"far_place": True, "boundary": True}

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        scale: float,
        place: Place = DEFAULT_PLACE,
        size: int = 7,
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place, size)
        self.size = size

    def cuts(self, grid: Grid) -> list[tuple[int, Cut]]:
        """Return the strided groups of a grid, for all heads."""
        sides = (min(self.size, grid[0]), min(self.size, grid[1]))
        return [(self.num_heads, Cut(grid, sides, strided=True))]

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates for one item: 2 g^2 N C.

        N is that of the grid with its zeros.
        """
        return super().macs(layout)
