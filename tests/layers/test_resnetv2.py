"""Convolutions of the ResNet against their definition."""

import pytest
import torch
import torch.nn.functional as F

from attnseg.layers.resnetv2 import StdConv2d


@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "size"),
    [
        (1, 1, 8, (6, 5)),
        (1, 2, 8, (7, 6)),
        (3, 2, 8, (7, 6)),
        (3, 1, 8, (6, 5)),
        (3, 1, 96, (16, 16)),
    ],
    ids=str,
)
def test_kernels_of_mean_0_and_variance_1(kernel, stride, channels, size):
    torch.manual_seed(0)
    conv = StdConv2d(channels, channels, kernel, stride)
    x = torch.randn(2, channels, *size, requires_grad=True)

    def defined(x, weight):
        var, mean = torch.var_mean(weight, (1, 2, 3), keepdim=True, unbiased=False)
        weight = (weight - mean) / (var + 1e-5).sqrt()
        return F.conv2d(x, weight, None, stride, kernel // 2)

    ours, theirs = conv(x), defined(x, conv.weight)
    assert ours.is_contiguous()
    towards = torch.randn_like(ours)
    for a, b in zip(
        (ours, *torch.autograd.grad(ours, (x, conv.weight), towards)),
        (theirs, *torch.autograd.grad(theirs, (x, conv.weight), towards)),
        strict=True,
    ):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()
