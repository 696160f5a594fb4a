"""Bilinear resizing in front of a concatenation, in either memory layout."""

import pytest
import torch

from attnseg.layers.conv import resize


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_of_a_concatenated_resize(layout):
    """It is a slice of the concatenation's gradient."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    skip = torch.randn(2, 2, 10, 8, dtype=torch.float64).contiguous(memory_format=layout)

    def joined(x):
        return torch.cat((resize(x.contiguous(memory_format=layout), (10, 8), True), skip), 1)

    assert torch.autograd.gradcheck(joined, x, check_undefined_grad=False)


def test_a_map_of_the_right_size_is_not_copied():
    x = torch.randn(1, 2, 5, 4)
    assert resize(x, (5, 4)) is x
