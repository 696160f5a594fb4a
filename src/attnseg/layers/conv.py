"""Convolution blocks and resizing shared by segmentation heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers import winograd


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` that computes on CPUs in whichever way is fastest, gradients included.

    3x3 kernels between many channels are convolved by Winograd's filtering, all others but 1x1
    plane by plane, whatever lies behind the input: for channels-last, as maps made of tokens are,
    PyTorch takes up to three times as long for the kernels' gradients.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `[B, C, H, W]`."""
        if winograd.suits(input, self):
            y = winograd.convolve(input, self.weight)
            return y if self.bias is None else y.add_(self.bias[:, None, None])
        if self.kernel_size != (1, 1) and input.device.type == "cpu":
            input = input.contiguous()
        return super().forward(input)


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, bias: bool) -> nn.Sequential:
    """Convolution that keeps height and width, batch normalisation, ReLU."""
    return nn.Sequential(
        Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def resize(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize `[B, C, h, w]` bilinearly to `[B, C, *size]`."""
    if x.shape[2:] == size:
        return x  # what the kernel would copy, and its gradient, too
    return whole_gradient(F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners))


def upsample(x: Tensor, factor: int, align_corners: bool = False) -> Tensor:
    """Resize `[B, C, h, w]` bilinearly to `[B, C, h * factor, w * factor]`."""
    return resize(x, (x.shape[2] * factor, x.shape[3] * factor), align_corners)


def whole_gradient(x: Tensor) -> Tensor:
    """Return `x`, whose gradient will be copied if it is a slice, as a concatenation hands back.

    With slices, gradients of resizes and batch normalisation take five to nine times as long.

    Args:
        x: `[B, C, H, W]` in any layout, or tokens `[B, N, C]`.
    """
    if x.requires_grad and not torch.compiler.is_compiling():
        x.register_hook(_whole)
    return x


def _whole(grad: Tensor) -> Tensor:
    channels_last = grad.ndim == 4 and grad.stride(1) == 1
    return grad.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
