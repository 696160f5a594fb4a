"""Convolution blocks and bilinear resizing that segmentation heads share."""

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
    """Resize `[B, C, h, w]` bilinearly to `[B, C, *size]`."""
    if x.shape[2:] == size:
        return x  # The kernel would copy the map, and copy its gradient again.
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def upsample(x: Tensor, factor: int, align_corners: bool = False) -> Tensor:
    """Resize `[B, C, h, w]` bilinearly to `[B, C, h * factor, w * factor]`."""
    return resize(x, (x.shape[2] * factor, x.shape[3] * factor), align_corners)
