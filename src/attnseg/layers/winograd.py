"""3x3 convolution by Winograd's minimal filtering, as matrix products of whole layers, for CPUs.

Lavin and Gray, 2015, arXiv 1509.09308. A tile of m x m pixels of the result takes (m + 2)^2
products per pair of channels instead of 9 m^2: 1/2.25 of them for m = 2, 1/4 for m = 4. What it
saves grows with the product of the two numbers of channels, what tiles cost with their sum.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.eager import eager_float32

# Of in * out / (in + out): measured as fast as direct convolution at 48, slower at 32.
_MIN_CHANNELS = 48
_MIN_PIXELS = 512  # of the batch: the kernels are transformed, too; slower at 256, faster at 784


class _Transforms(NamedTuple):
    """Of a tile's rows and columns at once: Kronecker squares of the paper's matrices.

    Attributes:
        data: B', `[(m + 2)^2, (m + 2)^2]`.
        kernel: G, `[(m + 2)^2, 9]`.
        result: A', `[m^2, (m + 2)^2]`.
    """

    data: Tensor
    kernel: Tensor
    result: Tensor


def _transforms(*matrices: list[list[float]]) -> _Transforms:
    squares = (torch.tensor(matrix, dtype=torch.float64) for matrix in matrices)
    return _Transforms(*(torch.kron(matrix, matrix) for matrix in squares))


_TRANSFORMS = {  # by m; B', G and A' of the paper's sections 4.1 and 4.3
    4: _transforms(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
    2: _transforms(
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
}


def suits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Return whether `convolve` computes this convolution, and faster than PyTorch does.

    Never of 16-bit numbers, whose rounding the transforms would multiply, and not while a graph is
    recorded: other runtimes choose for themselves.
    """
    batch, channels, height, width = x.shape
    return (
        eager_float32(x, conv.weight)
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and (conv.groups, conv.padding_mode) == (1, "zeros")
        and height % 2 == width % 2 == 0
        and batch * height * width >= _MIN_PIXELS
        and channels * conv.out_channels >= _MIN_CHANNELS * (channels + conv.out_channels)
    )


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with one pixel of zeros around the image.

    Of float32, errors reach 1.3e-5 of the largest result for m = 4 and 8e-7 for m = 2, those of
    PyTorch's direct convolution and its gradients 1.3e-5. For a moment, 4.5 times (m = 4) or 8
    times the memory of `x` are held.

    Args:
        x: `[B, C, H, W]`, even height and width.
        weight: `[O, C, 3, 3]`.

    Returns:
        `[B, O, H, W]`, channels-last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    result: Tensor = _Convolution.apply(x, weight)  # type: ignore[no-untyped-call]
    return result.permute(0, 3, 1, 2)  # here, since what a function returns as a view is read-only


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        return _convolved(x, _kernels(weight, _matrices(x).kernel).transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_weight = None
        m = _tile(x)
        _, of_kernel, of_result = _matrices(x)
        if ctx.needs_input_grad[0]:  # convolved with the kernels turned by 180 degrees
            grad_x = _convolved(grad.permute(0, 3, 1, 2), _kernels(weight, of_kernel.flip(1)))
            grad_x = grad_x.permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:  # by the transforms, transposed
            products = (of_result.t() @ _tiles(grad, m, m)).permute(1, 2, 0)
            kernels = products @ _data(x)
            grad_weight = (of_kernel.t() @ kernels.flatten(1)).t().contiguous().view_as(weight)
        return grad_x, grad_weight


def _convolved(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve `[B, C, H, W]` with transformed kernels `[(m + 2)^2, C, O]`; `[B, H, W, O]`."""
    batch, _, height, width = x.shape
    m = _tile(x)
    products = _data(x) @ kernels
    pixels = (_matrices(x).result @ products.flatten(1)).view(
        m, m, batch, height // m, width // m, -1
    )
    return pixels.permute(2, 3, 0, 4, 1, 5).reshape(batch, height, width, -1)


def _kernels(weight: Tensor, of_kernel: Tensor) -> Tensor:
    """Return the kernels of `[O, C, 3, 3]` by G `[(m + 2)^2, 9]`: `[(m + 2)^2, O, C]`."""
    out, channels, _, _ = weight.shape
    return (of_kernel @ weight.reshape(out * channels, 9).t()).view(-1, out, channels)


def _data(x: Tensor) -> Tensor:
    """Return the transformed tiles of `[B, C, H, W]`, `[(m + 2)^2, tiles, C]`."""
    m = _tile(x)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return (_matrices(x).data @ _tiles(padded, m + 2, m)).transpose(0, 1)


def _tiles(x: Tensor, side: int, step: int) -> Tensor:
    """Cut `[B, H, W, C]` into squares `step` apart, `[tiles, side^2, C]`."""
    tiles = x.unfold(1, side, step).unfold(2, side, step)  # [B, rows, columns, C, side, side]
    return tiles.permute(0, 1, 2, 4, 5, 3).reshape(-1, side**2, x.shape[3])


def _tile(x: Tensor) -> int:
    """Return m, the largest that divides height and width."""
    return 4 if x.shape[2] % 4 == x.shape[3] % 4 == 0 else 2


def _matrices(x: Tensor) -> _Transforms:
    """Return the transforms of an image's tiles, in its numbers."""
    return _Transforms(*(matrix.to(x) for matrix in _TRANSFORMS[_tile(x)]))
