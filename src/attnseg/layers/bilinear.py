"""Bilinear sampling made of operations whose gradient on CUDA can be deterministic."""

from torch import Tensor

from attnseg.layers.tokens import Grid


def sample_bilinear(values: Tensor, grid: Grid, points: Tensor) -> Tensor:
    """Return values between the places of a grid; the grid is surrounded by zeros.

    It replaces `grid_sample`, whose gradient has no deterministic form on CUDA; that of `gather`,
    which is used here, has one.

    Args:
        values: `[B, g, h * w, C]`, in row-major order.
        grid: height h and width w.
        points: row and column, `[B, g, n, 2]`; the centre of the first place is (0, 0).

    Returns:
        `[B, g, n, C]`, with gradients for values and points.
    """
    rows, columns = (_corners(at, side) for at, side in zip(points.unbind(-1), grid, strict=True))
    corners = [(row, column) for row in rows for column in columns]
    total = values.new_zeros(())
    for (row, above), (column, left) in corners:
        index = (row * grid[1] + column)[..., None].expand(-1, -1, -1, values.shape[3])
        weight = (above * left).to(values.dtype)
        total = total + weight[..., None] * values.gather(2, index)
    return total


def _corners(at: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two places next to a point along an axis, and their weights, 0 outside."""
    first = at.floor()
    after, corner = at - first, first.long()
    weights = (1 - after, after)
    return [
        # NaN has become some integer, which must be a place as well.
        ((i := corner + step).clamp(0, side - 1), weight * ((i >= 0) & (i < side)))
        for step, weight in enumerate(weights)
    ]
