"""No token mixing: the null control of a comparison of attentions.

MetaFormer, Yu et al., 2022, arXiv 2111.11418 and 2210.13452 (IdentityFormer).
"""

from torch import Tensor

from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import Grid, TokenMixer


class Identity(TokenMixer):
    """Returns every token as it is; without parameters, projections and operations."""

    sees = declare_sight(far=False)
    needs_grid = False
    mixes_prefix = False

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        context: Tensor | None = None,
        context_grid: Grid | None = None,
    ) -> Tensor:
        """Return `x`; see `TokenMixer.forward`."""
        if context is not None:
            raise ValueError("identity takes no context")
        return x

    def macs(
        self, tokens: int, grid: Grid, context: int | None = None, context_grid: Grid | None = None
    ) -> int:
        """Return 0."""
        return 0
