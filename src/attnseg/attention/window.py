"""Window attention: softmax within windows of w x w tokens, which `shift` moves by turns.

    out_i = sum_j softmax_j(s q_i . k_j + B(i - j)) v_j,   j in the window of i

Swin Transformer (W-MSA and SW-MSA), Liu et al., 2021, arXiv 2103.14030, equations 3 and 4. The bias
B is a learned table of (2w - 1)^2 numbers per head; DaViT's windows, Ding et al., 2022, arXiv
2204.03645, have none.
"""

from attnseg.attention.groups import Cut, GroupMixing
from attnseg.attention.mixing import Layout
from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place


class Window(GroupMixing):
    """Softmax attention within square windows.

    Where windows do not fill the grid, zeros are added below and at the right, to which no token
    attends. In the published dense-prediction code they are attended to as tokens without content.

    Args:
        head_dim: d.
        num_heads: h.
        scale: factor of the scores.
        place: where in the model the attention stands.
        size: w, the side of a window; 7 as published.
        shift: move the windows by w // 2 towards the bottom right in blocks 1, 3, 5, ...
        cut_to_grid: along an axis of at most w tokens, take windows of its length and no shift, as
            the published classification code does; otherwise grids are filled up to w x w tokens
            and the shift remains, as in the published dense-prediction code.
        bias: whether scores have a learned bias by relative position; DaViT's have none.

    Raises:
        ValueError: `size` is less than 1.
    """

    # Of windows of 3 tokens.
    sees = declare_sight(far=False)

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        scale: float,
        place: Place = DEFAULT_PLACE,
        size: int = 7,
        shift: bool = False,
        cut_to_grid: bool = True,
        bias: bool = True,
    ) -> None:
        if size < 1:
            raise ValueError(f"size {size} is not possible; use 1 or more tokens")
        super().__init__(head_dim, num_heads, scale, place, size if bias else None)
        self.size = size
        self.shift = size // 2 if shift and place.block % 2 else 0
        self.cut_to_grid = cut_to_grid

    def cuts(self, grid: Grid) -> list[tuple[int, Cut]]:
        """Return the windows of a grid, for all heads."""
        fits = [self.cut_to_grid and side <= self.size for side in grid]
        height, width = (n if fit else self.size for n, fit in zip(grid, fits, strict=True))
        down, right = (0 if fit else self.shift for fit in fits)
        return [(self.num_heads, Cut(grid, (height, width), (down, right)))]

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates for one item: 2 w^2 N C.

        N is that of the grid with its zeros.
        """
        return super().macs(layout)
