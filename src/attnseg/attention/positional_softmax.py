r"""Softmax attention with the position term of KV+Pos, folded into two terms of negligible cost.

Borji, 2023, arXiv 2305.19129: the scores s_ij are copied to m channels, a sinusoidal code P_ij of
the index pair (i, j) is added, and a linear map w returns to one channel, an n x n x m tensor:

    A_ij = softmax_j( sum_c w_c (s_ij + P_ijc) + bias )

P_ij concatenates a code of the row index i and one of the column index j, so the logit is
`c s_ij + a_i + b_j + bias` with `c = sum(w)`. Terms that do not depend on j cancel in the softmax;
`c s_ij + b_j` remains: one temperature and one bias per key, computed here in O(n m). Both come
from the published parameter w; the published bias has no effect and is left out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from attnseg.attention.fused import AUTO, fused_attention
from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.sight import declare_sight
from attnseg.layers.tokens import DEFAULT_PLACE, Place


def index_code(length: int, channels: int, like: Tensor) -> Tensor:
    """Return the sinusoidal code `[length, channels]`: sine and cosine interleaved, base 10000.

    Its type and device are those of `like`; `channels` is even.
    """
    steps = torch.arange(0, channels, 2, device=like.device, dtype=like.dtype)
    index = torch.arange(length, device=like.device, dtype=like.dtype)
    angle = index[:, None] * 10000.0 ** (-steps / channels)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    bias: Tensor,
    scale: float,
    backend: str = AUTO,
) -> Tensor:
    """Compute `softmax_j(temperature * scale * q_i . k_j + bias_j) V` by fused kernels.

    Queries are `[B, h, N, d]`, like the result, keys and values `[B, h, M, d]`, the bias `[M]` and
    the temperature a scalar; the backend is as of `fused_attention`.
    """
    return fused_attention(q, k * temperature.to(k.dtype), v, scale, backend, bias)


class BiasedAttention(torch.autograd.Function):
    """`biased_attention` that keeps nothing but its inputs for the backward pass.

    The forward pass needs no gradient of the bias and uses it as a mask, so that only the queries
    are copied; the backward pass builds the longer queries, keys and values again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:  # noqa: ANN401
        """Compute the attention; arguments as of `biased_attention`."""
        return masked_attention(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        """Keep the inputs for the backward pass."""
        ctx.save_for_backward(*inputs[:5])
        ctx.scale = inputs[5]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of all inputs but the scale."""
        with torch.enable_grad():
            q, k, v, c, b = inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            out = biased_attention(q, k, v, c, b, ctx.scale)
            return (*torch.autograd.grad(out, inputs, gradient), None)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, bias: Tensor, scale: float
) -> Tensor:
    """Compute the same as `biased_attention`, faster but without a gradient of the bias."""
    mask = bias.detach().to(q.dtype).expand(1, 1, q.shape[2], len(bias))
    return F.scaled_dot_product_attention(q * temperature.to(q.dtype), k, v, mask, scale=scale)


class PositionalSoftmax(Mixing):
    """Softmax attention whose logits are `c s_ij + b_j`; c and b come from one learned vector.

    The vector starts as the published default (uniform within m^-1/2), shifted so that c = 1.
    Without the shift, c is negative in about half of the draws, which inverts the attention.

    Args:
        head_dim: d.
        num_heads: h; all heads share c and b, as published.
        scale: factor of the scores before c.
        place: where in the model the attention stands.
        pos_dim: m, the channels of the pair code: 50 in the published vision models.

    Raises:
        ValueError: `pos_dim` is less than 3, which leaves no channel to the key index.
    """

    averages = True
    fused = True
    sees = declare_sight(far=True)

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        scale: float,
        place: Place = DEFAULT_PLACE,
        pos_dim: int = 50,
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        if pos_dim < 3:
            raise ValueError(f"pos_dim {pos_dim} leaves no channel to the key index; use 3 or more")
        weight = torch.empty(pos_dim).uniform_(-(pos_dim**-0.5), pos_dim**-0.5)
        self.weight = nn.Parameter(weight + (1 - weight.sum()) / pos_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        inputs = (q, k, v, *self.terms(k.shape[2]), self.scale)
        if q.is_cuda or self.backend != AUTO:
            return biased_attention(*inputs, self.backend)
        if not torch.is_grad_enabled():
            return masked_attention(*inputs)
        if torch.compiler.is_compiling():
            return biased_attention(*inputs)
        mixed: Tensor = BiasedAttention.apply(*inputs)  # type: ignore[no-untyped-call]
        return mixed

    def start_neutral(self) -> None:
        """Set c to 1 and b to 0: plain softmax attention."""
        rows = self._row_channels()
        with torch.no_grad():
            self.weight.zero_()[:rows] = 1 / min(rows, self.weight.numel())

    def terms(self, keys: int) -> tuple[Tensor, Tensor]:
        """Return the temperature c, a scalar, and the key bias b `[keys]`."""
        rows = self._row_channels()
        code = index_code(keys, rows, self.weight)
        column_weight = self.weight[rows:]
        return self.weight.sum(), code[:, : column_weight.numel()] @ column_weight

    def _row_channels(self) -> int:
        """Return the channels of the row index: half of all, rounded up to an even number."""
        return 2 * -(-self.weight.numel() // 4)
