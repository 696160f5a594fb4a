"""Stripe attention: half of the heads in horizontal, half in vertical stripes of s rows or columns.

    out_i = sum_j softmax_j(s q_i . k_j) v_j,   j in the horizontal or vertical stripe of i

CSWin Transformer, Dong et al., 2022, arXiv 2107.00652, equations 1 to 3. Stripes one token wide are
axial attention. The paper's convolution of the values (its position code) is left out.
"""

from collections.abc import Sequence

from attnseg.attention.groups import Cut, GroupMixing
from attnseg.attention.mixing import Layout
from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place


class Stripes(GroupMixing):
    """Softmax attention within stripes as long as the image.

    The odd one of an odd number of heads, or the only one, changes its direction from block to
    block, and is horizontal in block 0. Where stripes do not fill the grid, zeros are added below
    and at the right, to which no token attends.

    Args:
        head_dim: d.
        num_heads: h.
        scale: factor of the scores.
        place: where in the model the attention stands.
        widths: width of the stripes in stage 0, 1, ...; the last holds for all further stages.

    Raises:
        ValueError: `widths` is empty or has a number below 1.
    """

    # A row and a column in two blocks lead from any token to any other.
    sees = declare_sight(far=True)

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        scale: float,
        place: Place = DEFAULT_PLACE,
        widths: Sequence[int] = (1, 2, 7, 7),
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        if not widths or min(widths) < 1:
            raise ValueError(f"widths {list(widths)} are not possible; use 1 or more tokens each")
        self.width = widths[min(place.stage, len(widths) - 1)]
        self.horizontal_heads = (num_heads + (place.block + 1) % 2) // 2

    def cuts(self, grid: Grid) -> list[tuple[int, Cut]]:
        """Return the horizontal and the vertical stripes of a grid, where they have heads."""
        height, width = grid
        horizontal = Cut(grid, (min(self.width, height), width))
        vertical = Cut(grid, (height, min(self.width, width)))
        heads = (self.horizontal_heads, self.num_heads - self.horizontal_heads)
        return [(n, cut) for n, cut in zip(heads, (horizontal, vertical), strict=True) if n]

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates for one item: s (H + W) N C for stripes s wide.

        N is that of the grid with its zeros. Only an even number of heads has halves.
        """
        return super().macs(layout)
