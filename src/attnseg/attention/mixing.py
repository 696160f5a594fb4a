"""Base class of the mixings: modules that combine values according to queries and keys.

Notation: B batch, N query tokens, M key tokens, C width, h heads, d = C / h head width.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from attnseg.layers.sight import Sees
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place


class Layout(NamedTuple):
    """Where queries and keys lie: prefix tokens first, then a grid in row-major order.

    Attributes:
        queries: height and width of the grid of queries.
        keys: height and width of the grid of keys; (1, n) where keys lie on none.
        query_prefix: number of query tokens before the grid, such as a class token.
        key_prefix: number of key tokens before the grid.
        cell: query tokens per key, along each axis.
        joined: whether a key is made of all query tokens of its cell, not of the first alone.
        positions: row and column of each key of the grid, `[B, g, keys, 2]` for g groups of heads
            or `[1, 1, keys, 2]` for all,
            in units of query tokens, whose first has its centre at 0.5; `None` on a regular grid.
        of_context: whether the keys are those of other tokens than the queries.
    """

    queries: Grid
    keys: Grid
    query_prefix: int = 0
    key_prefix: int = 0
    cell: int = 1
    joined: bool = False
    positions: Tensor | None = None
    of_context: bool = False

    @property
    def query_tokens(self) -> int:
        """Number of queries, N."""
        return self.query_prefix + self.queries[0] * self.queries[1]

    @property
    def key_tokens(self) -> int:
        """Number of keys, M."""
        return self.key_prefix + self.keys[0] * self.keys[1]

    def key_centres(self) -> Tensor:
        """Return row and column of each key of the grid, as `positions` has them: `[..., keys, 2]`.

        Of a regular grid `[keys, 2]`.
        """
        if self.positions is not None:
            return self.positions
        middle = self.cell / 2 if self.joined else 0.5
        return torch.cartesian_prod(*(torch.arange(n) * self.cell + middle for n in self.keys))


class Mixing(nn.Module):
    """Combines values according to queries and keys: `forward(q, k, v, layout)`.

    `forward` is linear in the values; what follows and is not, such as a norm, stands in `finish`.

    A subclass in the file `attention/some_name.py` is called `SomeName` and is selected by
    `mixing="some_name"`. Its constructor takes the four arguments below, then its own options.

    Args:
        head_dim: d, the width of one head.
        num_heads: h.
        scale: factor of the scores; mixings without scores ignore it.
        place: where in the model the attention stands.

    Attributes:
        equal_tokens: whether there must be as many keys as queries.
        needs_grid: whether the result depends on where tokens lie on the grid, beyond their order.
        averages: whether the weights with which a query takes values sum to 1.
        fused: whether `fused_attention` computes it, so that a kernel can be chosen.
        backend: that kernel, one of `attnseg.attention.fused.BACKENDS`.
        sees: whether it should solve a probe, by the probe's name; see `layers/sight.py`.
    """

    averages = False
    fused = False
    backend = "auto"
    equal_tokens = False
    needs_grid = False
    sees: ClassVar[Sees] = {}

    def __init__(
        self, head_dim: int, num_heads: int, scale: float, place: Place = DEFAULT_PLACE
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.num_heads = num_heads
        self.scale = scale
        self.place = place

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values.

        Args:
            q: queries `[B, h, N, d]`.
            k: keys `[B, h, M, d]`.
            v: values `[B, h, M, d]`.
            layout: where queries and keys lie.

        Returns:
            Mixed values `[B, h, N, d]`.
        """
        raise NotImplementedError

    def finish(self, mixed: Tensor) -> Tensor:
        """Return what becomes of the mixed values before their projection: `[B, h, N, d]`."""
        return mixed

    def start_neutral(self) -> None:
        """Set learned parts so that they change nothing, where they can: biases to 0, for example.

        It serves networks whose other weights come from a trained one; by default nothing is set.
        """

    def diagnostics(self) -> dict[str, Tensor]:
        """Return learned scalars worth watching; see `TokenMixer.diagnostics`."""
        return {}

    def findings(self) -> list[str]:
        """Return what is remarkable about them; see `TokenMixer.findings`."""
        return []

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates of `forward` for one item.

        Only matrix products and convolutions count, as in PyTorch's FLOP counter. The default is
        that of a mixing that computes N x M scores and applies them to the values.
        """
        return 2 * self.num_heads * layout.query_tokens * layout.key_tokens * self.head_dim

    def absorbed(
        self, q: Tensor, k: Tensor, tokens: Tensor, value: nn.Linear, out: nn.Linear
    ) -> Tensor:
        """Compute `out(forward(q, k, value(tokens)))` with the weights multiplied first.

        The value projection, the mixing and the output projection are all linear in the tokens
        `[B, M, C]`, so a mixing that forms no N x M scores may multiply them in the cheapest order.
        It is only called where `absorbed_macs` is above 0, and returns `[B, N, C]`. A mixing with
        a `finish` of its own must not have it.
        """
        raise NotImplementedError

    def absorbed_macs(self, layout: Layout, value: nn.Linear) -> int:
        """Return how many multiply-accumulates `absorbed` saves for one item; 0 by default."""
        return 0
