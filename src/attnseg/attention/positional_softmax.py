r"""Softmax attention with the position term of KV+Pos, reduced to two terms of negligible cost.

Borji, 2023, arXiv 2305.19129: the scores s_ij are copied to m channels, a sinusoidal code P_ij of
the index pair (i, j) is added, and a linear map w returns to one channel, an n x n x m tensor:

    A_ij = softmax_j( sum_c w_c (s_ij + P_ijc) + bias )

P_ij concatenates a code of the row index i and one of the column index j, so the logit is
`c s_ij + a_i + b_j + bias` with `c = sum(w)`. Terms that do not depend on j cancel in the softmax;
`c s_ij + b_j` remains: one temperature and one bias per key, computed here in O(n m). Both come
from the published parameter w; the published bias has no effect and is left out.

The code of 2026 (https://github.com/Brainchip-Inc/Do-Transformers-Need-3-Projections) uses the
index pair, too; the draft beside it writes P(row_i, column_i, row_j, column_j) instead. That code
concatenates those of query and key, so it is reduced likewise: only b_j becomes a function of row
and column. A code of the difference i - j cannot be reduced: see `relative_softmax`.
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

CODES = ("index", "grid")
INITS = ("unit", "published")
PUBLISHED_STD = 0.02
FLAT = 0.1  # A smaller temperature, of either sign, is a finding.


def sinusoidal_code(places: Tensor, channels: int) -> Tensor:
    """Return the code `[..., channels]` of places: sine and cosine interleaved, base 10000.

    `channels` is even.
    """
    steps = torch.arange(0, channels, 2, device=places.device, dtype=places.dtype)
    angle = places[..., None] * 10000.0 ** (-steps / channels)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)


def half_channels(channels: int) -> int:
    """Return how many of the channels hold the first of two codes: half, rounded up to even."""
    return 2 * -(-channels // 4)


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

    Queries are `[B, h, N, d]`, like the result, keys and values `[B, h, M, d]`, the bias `[M]` or
    `[B, h, M]` and the temperature a scalar; the backend is as of `fused_attention`.
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
    mask = bias.detach().to(q.dtype).unsqueeze(-2)
    mask = mask.expand(*(bias.shape[:-1] or (1, 1)), q.shape[2], -1)
    return F.scaled_dot_product_attention(q * temperature.to(q.dtype), k, v, mask, scale=scale)


class PositionalSoftmax(Mixing):
    """Softmax attention whose logits are `c s_ij + b_j`; c and b come from one learned vector.

    On a grid, prefix tokens have no place and a bias of 0, and keys of another context have places
    on their own grid. All heads share c and b, as published.

    Args:
        head_dim: d.
        num_heads: h.
        scale: factor of the scores before c.
        place: where in the model the attention stands.
        pos_dim: m, the channels of the pair code: 50 in the published vision models.
        code: what the code is of: `index`, as published, of the number of the token; `grid`, of its
            row and column.
        init: how the vector starts. `unit`, ours: uniform within m^-1/2, as of a linear layer, then
            shifted so that c = 1. `published`, as the code of 2026: normal with a standard
            deviation of 0.02, so that c is near 0, and negative in half of the layers.

    Raises:
        ValueError: `pos_dim` leaves no channel to the keys; `code` or `init` is unknown.
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
        code: str = "index",
        init: str = "unit",
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        for name, value, known in (("code", code, CODES), ("init", init, INITS)):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
        fewest = {"index": 3, "grid": 7}[code]
        if pos_dim < fewest:
            raise ValueError(
                f"pos_dim {pos_dim} leaves no channel to the keys' code; use {fewest} or more"
            )
        self.needs_grid = code == "grid"
        if init == "published":
            weight = PUBLISHED_STD * torch.randn(pos_dim)
        else:
            weight = torch.empty(pos_dim).uniform_(-(pos_dim**-0.5), pos_dim**-0.5)
            weight += (1 - weight.sum()) / pos_dim
        self.weight = nn.Parameter(weight)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values; shapes as in `Mixing.forward`."""
        inputs = (q, k, v, *self.terms(layout), self.scale)
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
        of_queries = half_channels(self.weight.numel())
        with torch.no_grad():
            self.weight.zero_()[:of_queries] = 1 / of_queries

    def terms(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return the temperature c, a scalar, and the key bias b: `[keys]`.

        Where each image has sampled keys of its own, a bias on the grid is `[B, h, keys]`.
        """
        # The half of the queries cancels in the softmax.
        of_queries = half_channels(self.weight.numel())
        weight = self.weight[of_queries:]
        if self.needs_grid:
            return self.weight.sum(), self._grid_bias(weight, layout)
        return self.weight.sum(), _bias(self._count(layout.key_tokens), weight, of_queries)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the temperature; see `TokenMixer.diagnostics`."""
        return {"temperature": self.weight.detach().sum()}

    def findings(self) -> list[str]:
        """Return whether the attention is inverted or flat; see `TokenMixer.findings`."""
        temperature = float(self.diagnostics()["temperature"])
        found = []
        if temperature < 0:
            found.append(f"inverted: its temperature is {temperature:.2g}, below 0")
        if abs(temperature) < FLAT:
            found.append(f"flat: its temperature is {temperature:.2g}, within {FLAT} of 0")
        return found

    def _grid_bias(self, weight: Tensor, layout: Layout) -> Tensor:
        """Return the bias of all keys by row and column; `weight` is that of the keys' code."""
        rows = half_channels(weight.numel())
        of_row, of_column = weight[:rows], weight[rows:]
        if layout.positions is None:
            middle = (layout.cell - 1) / 2 if layout.joined else 0.0
            row, column = (self._count(side) * layout.cell + middle for side in layout.keys)
            bias = (_bias(row, of_row, rows)[:, None] + _bias(column, of_column, rows)).flatten()
        else:
            row, column = (layout.positions.to(weight.dtype) - 0.5).unbind(-1)
            bias = _bias(row, of_row, rows) + _bias(column, of_column, rows)
            bias = bias.repeat_interleave(self.num_heads // bias.shape[1], 1)
        return F.pad(bias, (layout.key_prefix, 0))

    def _count(self, length: int) -> Tensor:
        return torch.arange(length, device=self.weight.device, dtype=self.weight.dtype)


def _bias(places: Tensor, weight: Tensor, channels: int) -> Tensor:
    """Return the code of each place times the weights, of which there may be fewer: `[...]`."""
    return sinusoidal_code(places, channels)[..., : weight.numel()] @ weight
