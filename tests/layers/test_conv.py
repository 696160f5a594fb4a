"""Convolution: the same numbers whatever computes them, and however its input lies in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnseg.layers import winograd
from attnseg.layers.conv import Conv2d, resize

SIZES = pytest.mark.parametrize("size", [(4, 8), (2, 6)], ids=["tiles of 4", "tiles of 2"])
MANY = 96  # channels, from which on Winograd's filtering is used


@pytest.mark.parametrize(
    ("channels", "size"), [(8, (6, 5)), (MANY, (16, 16)), (MANY, (14, 20))], ids=str
)
def test_same_output_and_gradients_in_either_layout(channels, size):
    torch.manual_seed(0)
    conv, image = Conv2d(channels, channels, 3, padding=1), torch.randn(2, channels, *size)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = image.contiguous(memory_format=layout).detach().requires_grad_()
        conv.zero_grad()
        out = conv(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad, conv.weight.grad.clone(), conv.bias.grad.clone()))
    for plain, last in zip(*results, strict=True):
        assert torch.equal(plain, last)


@SIZES
def test_winograd_convolves(size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(winograd.convolve(x, weight), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(winograd.convolve, (x, weight))
    assert torch.autograd.gradgradcheck(winograd.convolve, (x, weight))


@SIZES
@pytest.mark.parametrize("frozen", [0, 1], ids=["frozen input", "frozen weight"])
def test_winograd_of_what_is_frozen(size, frozen):
    pair = [torch.ones(1, 2, *size), torch.ones(3, 2, 3, 3)]
    pair[1 - frozen].requires_grad_()
    winograd.convolve(*pair).sum().backward()
    assert [x.grad is None for x in pair] == [frozen == 0, frozen == 1]


@pytest.mark.parametrize(("side", "bound"), [(28, 1.5e-5), (14, 1e-6)], ids=str)
def test_winograd_rounds_little(side, bound):
    """Of the largest value, at a size of TransUNet's decoder: output and both gradients."""
    torch.manual_seed(0)
    pair = [torch.randn(4, 512, side, side), torch.randn(128, 512, 3, 3)]
    towards = torch.randn(4, 128, side, side)

    def results(function, dtype):
        x, weight = (value.to(dtype).requires_grad_() for value in pair)
        y = function(x, weight)
        return [y, *torch.autograd.grad(y, (x, weight), towards.to(dtype))]

    exact = results(lambda x, weight: F.conv2d(x, weight, padding=1), torch.float64)
    for ours, theirs in zip(results(winograd.convolve, torch.float32), exact, strict=True):
        assert (ours - theirs).abs().max() <= bound * theirs.abs().max()


def test_what_winograd_suits():
    conv, x = Conv2d(MANY, MANY, 3, padding=1), torch.empty(2, MANY, 16, 16)
    assert winograd.suits(x, conv)
    for other in (x[:1], x[:, :, 1:], x[..., 1:], x.double(), x.bfloat16(), x.to("meta")):
        assert not winograd.suits(other, conv)
    for options in (
        {"kernel_size": 1, "padding": 1},
        {"stride": 2},
        {"padding": 0},
        {"padding": 2, "dilation": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"out_channels": MANY - 1},
    ):
        chosen = {"out_channels": MANY, "kernel_size": 3, "padding": 1, **options}
        assert not winograd.suits(x, nn.Conv2d(MANY, **chosen)), options
    assert not winograd.suits(x, conv.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.suits(x, conv.float())


def test_an_exported_graph_holds_a_convolution_for_any_batch():
    conv, x = Conv2d(MANY, MANY, 3, padding=1).eval(), torch.randn(2, MANY, 16, 16)
    exported = torch.export.export(conv, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    graph = str(exported.graph)
    assert "conv2d" in graph
    assert "matmul" not in graph


def test_outputs_may_be_changed_in_place():
    """As by the ReLU that often follows."""
    conv, x = Conv2d(MANY, MANY, 3, padding=1), torch.randn(2, MANY, 16, 16)
    y = nn.ReLU(inplace=True)(conv(x))
    y.sum().backward()
    expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(y, expected.relu(), rtol=0, atol=1e-4)
    torch.testing.assert_close(conv.bias.grad, (expected > 0).float().sum((0, 2, 3)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_of_a_concatenated_resize(layout):
    """Which is a slice of another tensor's."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    skip = torch.randn(2, 2, 10, 8, dtype=torch.float64).contiguous(memory_format=layout)

    def joined(x):
        return torch.cat((resize(x.contiguous(memory_format=layout), (10, 8), True), skip), 1)

    assert torch.autograd.gradcheck(joined, x, check_undefined_grad=False)
    seen = []
    resized = resize(x.contiguous(memory_format=layout), (10, 8), True)
    resized.register_hook(seen.append)
    torch.cat((resized, skip), 1).square().sum().backward()
    assert seen[0].is_contiguous(memory_format=layout)
