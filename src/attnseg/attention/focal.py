"""Focal modulation in the place of attention: no scores, contexts of growing windows instead.

FocalNet, Yang et al., 2022, arXiv 2203.11926, equations 4 to 7. With one projection of the tokens
to q, z_0 and the gates g_1 ... g_(L+1):

    z_l = GELU(DWConv_l(z_(l-1))),  z_(L+1) = GELU(mean(z_L)),
    y = W(q * h(sum_l g_l * z_l)),

where h and W are linear and * is the product of elements.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place, TokenMixer
from attnseg.layers.vit import tokens_to_map


class FocalModulation(TokenMixer):
    """Multiplies every token by a gated sum of the contexts around it.

    Prefix tokens have no surroundings: they contribute to the mean and receive nothing else.

    Args:
        dim: C, the width of the tokens.
        num_heads: ignored, as are `scale` and `projection`.
        bias: whether the projection to q, z_0 and the gates has a bias.
        scale: ignored.
        projection: ignored.
        place: where in the model the mixer stands.
        levels: L, number of windows.
        window: side of the first window, in tokens; each further one is 2 tokens larger. Odd.
        postln: whether q * h(...) is normalised, as in the published large models.
        normalize: whether the sum over levels is divided by L + 1.

    Raises:
        ValueError: there is no level, or the window is even or below 1.
    """

    # Windows of 3 and then 5 tokens reach 3 tokens on each side, and 6 in two blocks.
    sees = declare_sight(far=True)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: bool = True,
        scale: float | None = None,
        projection: Callable[[int, bool], nn.Module] | None = None,
        place: Place = DEFAULT_PLACE,
        levels: int = 2,
        window: int = 3,
        postln: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, bias, scale, projection, place)
        if levels < 1:
            raise ValueError(f"levels {levels} leaves no window; use 1 or more")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window {window} must be odd and positive")
        self.windows = [window + 2 * level for level in range(levels)]
        self.project = nn.Linear(dim, 2 * dim + levels + 1, bias)
        self.contexts = nn.ModuleList(
            nn.Conv2d(dim, dim, side, padding=side // 2, groups=dim, bias=False)
            for side in self.windows
        )
        self.modulate = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim) if postln else None
        self.out = nn.Linear(dim, dim)
        self.divisor = levels + 1 if normalize else 1

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        context: Tensor | None = None,
        context_grid: Grid | None = None,
    ) -> Tensor:
        """Modulate tokens; see `TokenMixer.forward`."""
        if context is not None:
            raise ValueError("focal takes no context")
        prefix = x.shape[1] - grid[0] * grid[1]
        q, z, gates = self.project(x).split((self.dim, self.dim, len(self.windows) + 1), 2)
        patches, total = tokens_to_map(z, grid), torch.zeros_like(z[:, prefix:])
        for level, convolve in enumerate(self.contexts):
            patches = F.gelu(convolve(patches))
            total = total + gates[:, prefix:, level, None] * patches.flatten(2).mT
        # The mean covers the last level and, of prefix tokens, what a window on one token sees.
        last = torch.cat((F.gelu(z[:, :prefix]), patches.flatten(2).mT), 1)
        whole = gates[..., -1:] * F.gelu(last.mean(1, keepdim=True))
        total = whole + F.pad(total, (0, 0, prefix, 0))
        mixed = q * self.modulate(total / self.divisor)
        out: Tensor = self.out(mixed if self.norm is None else self.norm(mixed))
        return out

    def macs(
        self, tokens: int, grid: Grid, context: int | None = None, context_grid: Grid | None = None
    ) -> int:
        """Return the MACs for one item: N C (4 C + L + 1) + h w C sum_l k_l^2 on a grid (h, w)."""
        projections = tokens * self.dim * (4 * self.dim + len(self.windows) + 1)
        return projections + grid[0] * grid[1] * self.dim * sum(k**2 for k in self.windows)
