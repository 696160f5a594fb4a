"""Base class of the gathers: modules that select or form the tokens that give keys and values."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from attnseg.layers.sight import Sees
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place


class Gathered(NamedTuple):
    """Tokens that give keys and values.

    Attributes:
        tokens: `[B, M, C]`; any prefix tokens first, then the grid in row-major order.
        grid: height and width of their grid.
        cell: former tokens per token, along each axis.
        joined: whether a token is made of all of its cell, not of the first one alone.
        positions: of the grid's tokens, as in `Layout.positions`.
    """

    tokens: Tensor
    grid: Grid
    cell: int = 1
    joined: bool = False
    positions: Tensor | None = None


class Gather(nn.Module):
    """Selects or forms the tokens that give keys and values; prefix tokens must be kept.

    A subclass in the file `attention/some_name.py` is called `SomeName` and is selected by
    `gather="some_name"`. Its constructor takes the three arguments below, then its own options.

    Args:
        dim: C, the width of the tokens.
        num_heads: h.
        place: where in the model the attention stands.

    Attributes:
        keeps_all: whether `forward` returns its tokens as they are.
        sees: whether an attention with it should solve a probe, by the probe's name, where that is
            not for the mixing to say; see `layers/sight.py`.
    """

    keeps_all = False
    sees: ClassVar[Sees] = {}

    def __init__(self, dim: int, num_heads: int, place: Place = DEFAULT_PLACE) -> None:
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.place = place

    def forward(self, tokens: Tensor, grid: Grid, queries: Tensor, query_grid: Grid) -> Gathered:
        """Gather tokens.

        Args:
            tokens: `[B, prefix + h * w, C]`.
            grid: height and width of their grid.
            queries: projected queries `[B, N, C]`, for gathers that depend on them.
            query_grid: height and width of the grid of the queries.
        """
        raise NotImplementedError

    def macs(self, tokens: int, grid: Grid) -> tuple[int, int, Grid]:
        """Return the multiply-accumulates for one item, and how many tokens come out on which grid.

        Args:
            tokens: prefix tokens included.
            grid: height and width of their grid.
        """
        raise NotImplementedError
