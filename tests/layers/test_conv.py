"""A convolution does not depend on how its input lies in memory."""

import torch

from attnseg.layers.conv import Conv2d


def test_same_output_and_gradients_in_either_layout():
    torch.manual_seed(0)
    conv, image = Conv2d(8, 4, 3, padding=1), torch.randn(2, 8, 6, 5)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = image.contiguous(memory_format=layout).detach().requires_grad_()
        conv.zero_grad()
        out = conv(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad, conv.weight.grad.clone()))
    for plain, last in zip(*results, strict=True):
        assert torch.equal(plain, last)
