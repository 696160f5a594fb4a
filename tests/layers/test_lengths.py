"""Squared lengths: exact, with gradients of every order."""

import pytest
import torch

from attnseg.layers.lengths import squared_length


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_squared_length(dim):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    expected = x.pow(2).sum(dim, keepdim=True)
    torch.testing.assert_close(squared_length(x, dim), expected, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(squared_length, (x, dim))
    assert torch.autograd.gradgradcheck(squared_length, (x, dim))


@pytest.mark.parametrize("dim", [1, 2])
def test_the_gradient_of_nothing_is_nothing(dim):
    """A length's own would be no number."""
    x = torch.zeros(2, 3, 4, requires_grad=True)
    squared_length(x, dim).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
