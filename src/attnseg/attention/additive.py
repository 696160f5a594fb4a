"""Efficient additive attention: one global query per image; linear in N.

SwiftFormer, Shaker et al., 2023, arXiv 2303.15446, equations 2 to 4, normalised as in the published
code: with queries and keys of unit length,

    alpha = Q w / |Q w|,  g = sum_i alpha_i q_i,  y_i = W_2 (W_1 (g * k_i) + q_i).

The published factor d^-1/2 of Q w cancels in alpha and is left out.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.attention.attention import LinearProjection
from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place, TokenMixer


class Additive(TokenMixer):
    """Multiplies every key by one sum of all queries; there are no values.

    Args:
        dim: C, the width of the tokens.
        num_heads: ignored: as published, there is one head of the whole width.
        bias: whether the projections of queries and keys have a bias.
        scale: ignored.
        projection: makes the projections of queries and keys; without stride.
        place: where in the model the mixer stands.
    """

    # The one global query is the same for all tokens.
    sees = declare_sight(far=True, sharp=False)
    needs_grid = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: bool = True,
        scale: float | None = None,
        projection: Callable[[int, bool], nn.Module] | None = None,
        place: Place = DEFAULT_PLACE,
    ) -> None:
        super().__init__(dim, num_heads, bias, scale, projection, place)
        make = projection or LinearProjection
        self.project = nn.ModuleDict({name: make(dim, bias) for name in "qk"})
        self.weigh = nn.Parameter(torch.randn(dim))
        self.modulate = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        context: Tensor | None = None,
        context_grid: Grid | None = None,
    ) -> Tensor:
        """Mix tokens; see `TokenMixer.forward`."""
        if context is not None:
            raise ValueError("additive takes no context")
        q, k = (self.project[name](x, grid, False) for name in "qk")
        if q.dtype == torch.float16:  # The least norm of `F.normalize` would be 0.
            q, k = q.float(), k.float()
        q, k = F.normalize(q, dim=2), F.normalize(k, dim=2)
        # These products are too small to be worth a matrix product.
        shares = F.normalize((q * self.weigh).sum(2, keepdim=True), dim=1)
        whole = (shares * q).sum(1, keepdim=True)
        out: Tensor = self.out(self.modulate(whole * k) + q)
        return out

    def macs(
        self, tokens: int, grid: Grid, context: int | None = None, context_grid: Grid | None = None
    ) -> int:
        """Return the MACs for one item: 4 N C^2 with linear projections."""
        projections: Any = self.project.values()
        projected = sum(project.macs(tokens, grid, False)[0] for project in projections)
        return int(projected) + 2 * tokens * self.dim**2
