"""A linear layer by the matrix products that CPUs are fast at, where its weight is large."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.eager import eager_float32

_MIN_WEIGHTS = 2**20  # numbers; of smaller ones there is nothing to win
_COLUMNS = 1024  # of a product at once, if it has few rows: slower at 3,136, faster at 1,028
_MAX_ROWS = 2048


class Linear(nn.Linear):
    """`torch.nn.Linear` that computes on CPUs in whichever way is fastest, gradients included.

    Wide products are computed some columns at a time: in a ViT's feed-forward networks, of 196 to
    784 tokens, they then take 0.84 to 0.94 of the time. An odd number of tokens is made even for
    the weight's gradient, which then takes 0.89 to 0.98 of the time.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        if not suits(input, self):
            return super().forward(input)
        tokens = input.reshape(-1, self.in_features)
        product: Tensor = _Product.apply(tokens, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product.view(*input.shape[:-1], self.out_features)


def suits(x: Tensor, layer: nn.Linear) -> bool:
    """Return whether this layer is large enough, of float32 and on the CPU, and not recorded."""
    return eager_float32(x, layer.weight) and layer.weight.numel() >= _MIN_WEIGHTS


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        return _product(x, weight.t(), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight) if needs_x else None,
            _product(_even(grad).t(), _even(x)) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `[N, K]` times `[K, M]`, plus a bias `[M]`."""
    if torch.is_grad_enabled() or len(a) > _MAX_ROWS or b.shape[1] <= _COLUMNS:
        return a @ b if bias is None else torch.addmm(bias, a, b)
    product = a.new_empty(len(a), b.shape[1])
    for i in range(0, b.shape[1], _COLUMNS):
        part = slice(i, i + _COLUMNS)
        if bias is None:
            torch.mm(a, b[:, part], out=product[:, part])
        else:
            torch.addmm(bias[part], a, b[:, part], out=product[:, part])
    return product


def _even(x: Tensor) -> Tensor:
    """Return `[N, C]` with a row of zeros more if N is odd: products over an odd N are slow."""
    return F.pad(x, (0, 0, 0, 1)) if len(x) % 2 else x
