"""Convolution blocks and bilinear resizing that segmentation heads share."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, bias: bool) -> nn.Sequential:
    """Build a convolution that keeps height and width, batch normalisation and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def resize(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize `[B, C, h, w]` bilinearly to `[B, C, *size]`; the gradient is deterministic."""
    if x.shape[2:] == size:
        return x  # The kernel would copy the map, and copy its gradient again.
    if not x.is_cuda:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
    resized: Tensor = BilinearResize.apply(x, size, align_corners)  # type: ignore[no-untyped-call]
    return resized


def upsample(x: Tensor, factor: int, align_corners: bool = False) -> Tensor:
    """Resize `[B, C, h, w]` bilinearly to `[B, C, h * factor, w * factor]`."""
    return resize(x, (x.shape[2] * factor, x.shape[3] * factor), align_corners)


class BilinearResize(torch.autograd.Function):
    """Bilinear resizing whose gradient is two matrix products, for CUDA.

    The gradient of PyTorch's own kernel adds in any order there. Its deterministic replacement
    gathers and sorts, forward and backward, and moves several times as much memory.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        """Resize `[B, C, h, w]` to `[B, C, *size]`."""
        return _resize_by_kernel(x, size, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        """Keep the sizes for the backward pass."""
        ctx.size, ctx.align_corners = inputs[0].shape[2:], inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        """Return `R^T G C` for the matrices R and C that resize rows and columns."""
        (height, width), (new_height, new_width) = ctx.size, gradient.shape[2:]
        rows = interpolation_matrix(height, new_height, ctx.align_corners, gradient)
        columns = rows
        if (width, new_width) != (height, new_height):
            columns = interpolation_matrix(width, new_width, ctx.align_corners, gradient)
        if gradient.stride(1) != 1:
            return rows.mT @ (gradient @ columns), None, None
        by_row = gradient.permute(0, 2, 3, 1).flatten(2)  # [B, H, W C], a view: channels come last
        by_place = (rows.mT @ by_row).unflatten(2, (gradient.shape[3], -1))
        return (columns.mT @ by_place).permute(0, 3, 1, 2), None, None


def interpolation_matrix(old: int, new: int, align_corners: bool, like: Tensor) -> Tensor:
    """Return the matrix `[new, old]` that resizes an axis; device and type are those of `like`."""
    wide = torch.promote_types(like.dtype, torch.float32)
    identity = torch.eye(old, device=like.device, dtype=wide)[None, None]
    return _resize_by_kernel(identity, (new, old), align_corners)[0, 0].to(like.dtype)


def _resize_by_kernel(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    # `F.interpolate` would take the slow form wherever deterministic algorithms are asked for.
    resized: Tensor = torch.ops.aten.upsample_bilinear2d(x, size, align_corners)
    return resized
