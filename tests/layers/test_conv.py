"""Bilinear resizing in either memory layout, and its gradient by matrix products."""

import pytest
import torch
import torch.nn.functional as F

from attnseg.layers.conv import BilinearResize, resize


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


@pytest.mark.parametrize("size", [(10, 8), (3, 9), (5, 1)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_by_matrix_products_is_that_of_pytorch(layout, align_corners, size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    aim = torch.randn(2, 3, *size)

    def gradient(resized):
        return torch.autograd.grad((resized.contiguous(memory_format=layout) * aim).sum(), x)[0]

    laid_out = x.contiguous(memory_format=layout)
    ours = BilinearResize.apply(laid_out, size, align_corners)
    theirs = F.interpolate(laid_out, size=size, mode="bilinear", align_corners=align_corners)
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(gradient(ours), gradient(theirs), rtol=1e-5, atol=2e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_resizing_of_gpus_compiles_and_maps_over_batches():
    def squares(x):
        return BilinearResize.apply(x, (10, 8), False).square().sum()

    x = torch.randn(3, 2, 5, 4)
    wanted = torch.func.grad(squares)(x)
    compiled = torch.compile(squares, fullgraph=True, backend="aot_eager")
    own = x.clone().requires_grad_()
    compiled(own).backward()
    torch.testing.assert_close(own.grad, wanted)
    each = torch.func.vmap(torch.func.grad(squares))(x[:, None])
    torch.testing.assert_close(each[:, 0], wanted)
