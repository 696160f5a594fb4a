"""Linear attention: phi(Q) (phi(K)^T V) / (phi(Q) sum_j phi(k_j)), linear in N.

Katharopoulos et al., 2020, arXiv 2006.16236, equation 5, with phi(x) = elu(x) + 1; EfficientViT,
Cai et al., 2022, arXiv 2205.14756, equation 2, with phi(x) = relu(x). There is nothing to scale.
"""

import torch
from torch import Tensor

from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Place

FEATURES = ("relu", "elu")
MIN_SUM = 1e-12  # of a query's products with all keys


class Linear(Mixing):
    """Gives every query an average of the values, weighted by products of positive features.

    A query without any positive product, as ReLU allows, gets zeros.

    Args:
        head_dim: d.
        num_heads: h.
        scale: ignored.
        place: where in the model the attention stands.
        feature: phi; `relu`, or `elu`, which is elu + 1.

    Raises:
        ValueError: the feature is unknown.
    """

    # A product of two features cannot be as sharp as an exponential.
    sees = declare_sight(far=True, sharp=False)

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        scale: float,
        place: Place = DEFAULT_PLACE,
        feature: str = "relu",
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        if feature not in FEATURES:
            raise ValueError(f"unknown feature {feature!r}; choose one of {', '.join(FEATURES)}")
        self.feature = feature

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        q, k = self._features(q), self._features(k)
        share = 1.0
        if v.dtype == torch.float16:  # Sums of many products would overflow.
            share = k.shape[2] ** -0.5
            k, v = k * share, v * share
        mixed: Tensor = q @ (k.transpose(2, 3) @ v)
        # The sums are of float32 or wider, since their lower bound is 0 in float16. A bound instead
        # of an addend leaves all other quotients exact.
        wide = torch.promote_types(q.dtype, torch.float32)
        sums = (q.to(wide) * k.to(wide).sum(2, keepdim=True)).sum(3, keepdim=True)
        return (mixed / (sums * share).clamp_min(MIN_SUM)).to(v.dtype)

    def macs(self, layout: Layout) -> int:
        """Return the multiply-accumulates for one item: h (N + M) d^2."""
        tokens = layout.query_tokens + layout.key_tokens
        return self.num_heads * tokens * self.head_dim**2

    def _features(self, x: Tensor) -> Tensor:
        """Return phi(x); exp(x) is elu(x) + 1 below 0, without the rounding of that sum."""
        return x.relu() if self.feature == "relu" else x.relu() + x.clamp_max(0).exp()
