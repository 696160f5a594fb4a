"""Differential attention: the difference of two softmaxes, whose common noise cancels.

Ye et al., 2024, arXiv 2410.05258, equations 1 to 3: queries and keys are halved within each head,

    (softmax(s Q1 K1^T) - lambda softmax(s Q2 K2^T)) V,   s = (d / 2)^-1/2,
    lambda = exp(a1 . b1) - exp(a2 . b2) + lambda_init,   lambda_init = 0.8 - 0.6 exp(-0.3 block),

and each head's result is normalised by its root mean square and multiplied by 1 - lambda_init.
"""

import math

import torch
from torch import Tensor, nn

from attnseg.attention.fused import fused_attention
from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Place

INITIAL_STD = 0.1  # of a1, b1, a2 and b2


class Differential(Mixing):
    """Subtracts one softmax attention from another; weights may be negative and sum to 1 - lambda.

    All heads share lambda and the weights of the norm, as published.

    Args:
        head_dim: d; even.
        num_heads: h. A plain attention of the same width has twice as many in the paper.
        scale: factor of the scores of whole heads; those of halves get sqrt(2) times as much.
        place: where in the model the attention stands; later blocks subtract more at first.

    Raises:
        ValueError: the width of a head is odd.
    """

    fused = True
    sees = declare_sight(far=True)

    def __init__(
        self, head_dim: int, num_heads: int, scale: float, place: Place = DEFAULT_PLACE
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        if head_dim % 2:
            raise ValueError(
                f"differential mixing halves the width {head_dim} of a head, which is odd; "
                "use another number of heads"
            )
        self.initial = 0.8 - 0.6 * math.exp(-0.3 * place.block)
        # a1 and a2, then b1 and b2.
        self.exponents = nn.Parameter(INITIAL_STD * torch.randn(2, 2, head_dim // 2))
        self.norm = nn.RMSNorm(head_dim, eps=1e-5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        wanted, noise = (
            fused_attention(*half, v, self.scale * 2**0.5, self.backend)
            for half in zip(q.chunk(2, 3), k.chunk(2, 3), strict=True)
        )
        return wanted - self.noise_weight().to(noise.dtype) * noise

    def finish(self, mixed: Tensor) -> Tensor:
        """Normalise each head; see `Mixing.finish`."""
        normed: Tensor = self.norm(mixed.to(self.norm.weight.dtype))
        return normed * (1 - self.initial)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return lambda; see `TokenMixer.diagnostics`."""
        return {"lambda": self.noise_weight().detach()}

    def noise_weight(self) -> Tensor:
        """Return lambda, a scalar."""
        wanted, noise = (self.exponents[0] * self.exponents[1]).sum(1).exp().unbind()
        return wanted - noise + self.initial

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates for one item: 3 h N M d, as values are mixed twice."""
        return 3 * self.num_heads * layout.query_tokens * layout.key_tokens * self.head_dim
