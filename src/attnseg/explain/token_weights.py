"""Attention weights of a token, derived from the mixing itself instead of from a formula for it.

With queries and keys held fixed, every mixing is linear in the values. The weight with which query
token i takes value token j is therefore the derivative of its output by that value:

    d out_i / d v_j = w_ij I      where tokens are mixed (softmax and its variants, efficient),
    d out_i / d v_i = A           where channels are mixed (transpose): no other token is reached.

One backward pass through the mixing gives row i of w; one forward pass with unit vectors as values
gives columns of it. Notation: see `attnseg.attention.attention`. Mixers without values:
`attnseg.explain.jacobian`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attnseg.explain.recording import AttentionRecord

MixingKind = Literal["tokens", "channels", "both", "jacobian"]
ROUNDING = 1e-4  # Derivatives below this share of the largest one count as rounding errors.


@dataclass(frozen=True)
class TokenWeights:
    """The weights with which one query token takes values.

    Attributes:
        kind: whether the mixing mixes tokens, channels, or both at once; or that there are no
            values, and the derivative is by the input tokens of the whole mixer.
        weights: of keys, `[h, M]`, if tokens are mixed; of channels, `[h, d, d]`, if channels are;
            else the norm of the derivative by each value or input token, `[h, M]` or `[1, M]`.
        error: largest difference between the mixing's output and the one rebuilt from the
            derivative, as a share of the largest output; above rounding if the mixing is not
            linear in its values. Of a jacobian: see `attnseg.explain.jacobian`.
    """

    kind: MixingKind
    weights: Tensor
    error: float

    @property
    def shares(self) -> Tensor:
        """The weights without their signs; of norms, each one's share of their sum."""
        sizes = self.weights.abs()
        if self.kind in ("tokens", "channels"):
            return sizes
        return sizes / sizes.sum(-1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)


@torch.no_grad()
def weights_of_token(record: AttentionRecord, token: int) -> TokenWeights:
    """Return the weights of a query token; the index counts prefix tokens."""
    generator = torch.Generator().manual_seed(0)
    heads, _, width = record.v.shape[1:]
    # A random direction: its derivative is parallel to it only if no channels are mixed.
    direction = torch.randn(heads, width, generator=generator).to(record.v)
    derivative = _derivative_along(record, token, direction)
    weights = (derivative @ direction[..., None])[..., 0] / direction.square().sum(1, keepdim=True)
    kind: MixingKind = "tokens"
    if is_negligible(derivative - weights[..., None] * direction[:, None], derivative):
        rebuilt = (weights[:, None] @ record.v[0])[:, 0]
    else:
        units = torch.eye(width).to(record.v)
        jacobian = torch.stack(
            [_derivative_along(record, token, unit.expand(heads, -1)) for unit in units], 2
        )
        rebuilt = torch.einsum("hmcd,hmd->hc", jacobian, record.v[0])
        others = torch.arange(jacobian.shape[1]) != token
        if is_negligible(jacobian[:, others], jacobian):
            kind, weights = "channels", jacobian[:, token]
        else:
            kind, weights = "both", jacobian.norm(dim=(2, 3)) / width**0.5
    out = record.out[0, :, token]
    error = (rebuilt - out).abs().max() / out.abs().max().clamp_min(torch.finfo(out.dtype).tiny)
    return TokenWeights(kind, weights.cpu(), float(error))


def _derivative_along(record: AttentionRecord, token: int, direction: Tensor) -> Tensor:
    """Return the derivative of a token's output, along `[h, d]`, by the values: `[h, M, d]`."""
    with torch.enable_grad():
        v = record.v.detach().requires_grad_()
        out = record.mix_values(record.q, v)[0, :, token]
        return torch.autograd.grad(out, v, direction)[0][0]


def is_negligible(rest: Tensor, whole: Tensor) -> bool:
    """Return whether a remainder is nothing but rounding errors of the whole."""
    return rest.numel() == 0 or bool(rest.abs().max() <= ROUNDING * whole.abs().max())


@torch.no_grad()
def weight_columns(
    record: AttentionRecord, queries: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the weights of many queries, a few keys at a time, where tokens are mixed.

    The queries are given by index, prefix tokens included; `None` takes all.

    Yields:
        The index of the first key, prefix tokens included, and weights `[h, queries, keys]`.
    """
    q = record.q if queries is None else record.q[:, :, queries]
    keys, width = record.v.shape[2:]
    for start in range(0, keys, width):
        at = torch.arange(min(width, keys - start))
        units = torch.zeros_like(record.v)
        units[..., start + at, at] = 1
        yield start, record.mix_values(q, units)[0, ..., : len(at)]
