"""Fixed random mixing of tokens: a null control that mixes with weights that are not learned.

MetaFormer baselines, Yu et al., 2022, arXiv 2210.13452, section 2.2 (RandFormer).
"""

import torch
from torch import Tensor

from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import Grid, TokenMixer

PRIME = 2**31 - 1


class Random(TokenMixer):
    """Gives every token a random convex combination of all tokens, the same for every image.

    The weights are a softmax of uniform random numbers, here of unit variance, since the paper
    gives none. They depend on the numbers
    of the block and of the tokens alone, so that a model always mixes alike; none is a parameter.
    """

    # Weights that are not learned still carry a mean of all tokens.
    sees = declare_sight(far=True, sharp=False)
    needs_grid = False

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        context: Tensor | None = None,
        context_grid: Grid | None = None,
    ) -> Tensor:
        """Mix tokens; see `TokenMixer.forward`."""
        tokens = x if context is None else context
        mixed: Tensor = self._weights(x.shape[1], tokens.shape[1], x.device).to(x) @ tokens
        return mixed

    def macs(
        self, tokens: int, grid: Grid, context: int | None = None, context_grid: Grid | None = None
    ) -> int:
        """Return the multiply-accumulates for one item; see `TokenMixer.macs`."""
        return tokens * (tokens if context is None else context) * self.dim

    def _weights(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Return the weights `[queries, keys]`.

        The numbers come from a hash of row, column and block in integers, which is the same on
        every device and in an exported graph, as a random generator would not be.
        """
        rows, columns = (torch.arange(1, n + 1, device=device) for n in (queries, keys))
        mixed = rows[:, None] * 1_103_515_245 + columns * 22_695_477 + self.place.block * 69_069
        for factor in (48_271, 16_807, 39_373):  # multipliers of the minimal standard generators
            mixed = mixed % PRIME
            mixed = (mixed * (mixed + factor)) % PRIME
        uniform = mixed.float() / PRIME
        return ((uniform - 0.5) * 12**0.5).softmax(1)
