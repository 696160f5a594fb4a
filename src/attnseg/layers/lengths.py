"""Lengths of vectors, whose gradients take one pass over the vectors instead of three."""

from typing import Any

import torch
from torch import Tensor


def squared_length(x: Tensor, dim: int) -> Tensor:
    """Return the sum of squares along an axis, kept: `[..., n, ...]` to `[..., 1, ...]`."""
    if torch.compiler.is_compiling():
        return _sum_of_squares(x, dim)
    length: Tensor = _SquaredLength.apply(x, dim)  # type: ignore[no-untyped-call]
    return length


def _sum_of_squares(x: Tensor, dim: int) -> Tensor:
    if dim in (-1, x.ndim - 1):  # no copy of its squares; along another axis, far slower than one
        length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
        return length.square()
    return x.square().sum(dim, keepdim=True)


class _SquaredLength(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x)
        return _sum_of_squares(x, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (x,) = ctx.saved_tensors
        return x * (2 * grad), None
