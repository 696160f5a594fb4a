"""Reduced keys against plain loops, on grids that do not fit."""

import pytest
import torch
import torch.nn.functional as F

from attnseg.attention.attention import Attention
from attnseg.layers.tokens import DEFAULT_PLACE, Place

DIM, HEADS = 8, 2


def make(gather, place=DEFAULT_PLACE, **options):
    torch.manual_seed(0)
    made = Attention(DIM, HEADS, place=place, gather=gather, gather_options=options)
    return made.double().gather


def mapped(gather, token):
    """A token after the norm of either gather."""
    return F.layer_norm(token, (DIM,), gather.norm.weight, gather.norm.bias, 1e-5)


@pytest.mark.parametrize("grid", [(5, 7), (4, 6), (1, 2), (2, 9)])
@pytest.mark.parametrize("prefix", [0, 2])
def test_strided_convolution_by_loops(grid, prefix):
    gather = make("spatial_reduction", ratio=3)
    tokens = torch.randn(2, prefix + grid[0] * grid[1], DIM, dtype=torch.double)
    out = gather(tokens, grid, tokens, grid)
    wanted = [mapped(gather, tokens[:, i]) for i in range(prefix)]
    for top in range(0, grid[0], 3):
        for left in range(0, grid[1], 3):
            total = gather.conv.bias.expand(2, -1)
            for row in range(top, min(top + 3, grid[0])):
                for column in range(left, min(left + 3, grid[1])):
                    kernel = gather.conv.weight[:, :, row - top, column - left]
                    total = total + tokens[:, prefix + row * grid[1] + column] @ kernel.T
            wanted.append(mapped(gather, total))
    assert (out.tokens - torch.stack(wanted, 1)).abs().max() < 1e-12
    assert out.grid == (-(-grid[0] // 3), -(-grid[1] // 3))
    assert (out.cell, out.joined) == (3, True)
    assert gather.macs(tokens.shape[1], grid)[1:] == (out.tokens.shape[1], out.grid)


@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (3, 13), (1, 2)])
@pytest.mark.parametrize("prefix", [0, 2])
def test_pooling_by_loops(grid, prefix):
    gather = make("pooled_reduction", size=4)
    tokens = torch.randn(2, prefix + grid[0] * grid[1], DIM, dtype=torch.double)
    out = gather(tokens, grid, tokens, grid)
    pooled = F.adaptive_avg_pool2d(
        tokens[:, prefix:].mT.unflatten(2, grid), tuple(min(4, side) for side in grid)
    )
    plain = torch.cat((tokens[:, :prefix], pooled.flatten(2).mT), 1)
    wanted = F.gelu(mapped(gather, gather.linear(plain)))
    assert (out.tokens - wanted).abs().max() < 1e-12
    assert gather.macs(tokens.shape[1], grid)[1:] == (out.tokens.shape[1], out.grid)
    if grid == (8, 8):
        assert (out.cell, out.joined, out.positions) == (2, True, None)
    if grid == (5, 7):  # cells overlap: rows 0-1, 1-2, 2-3, 3-4 and columns 0-1, 1-3, 3-5, 5-6
        centres = out.positions[0, 0].unflatten(0, (4, 4))
        assert centres[:, 0, 0].tolist() == [1, 2, 3, 4]
        assert centres[0, :, 1].tolist() == [1, 2.5, 4.5, 6]


def test_ratio_by_grid_by_stage_or_one_for_all():
    for side, ratio in ((56, 8), (28, 4), (14, 2), (7, 1), (3, 1)):
        assert make("spatial_reduction", Place(0, 0, (side, side + 3))).ratio == ratio
    for stage, ratio in ((0, 8), (1, 4), (2, 4)):
        assert make("spatial_reduction", Place(stage), ratio=[8, 4]).ratio == ratio
    assert make("spatial_reduction", Place(3), ratio=2).ratio == 2
    assert not list(make("spatial_reduction", ratio=1).parameters())


@pytest.mark.parametrize("ratio", [0, [], [2, 0]])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match="must hold numbers of 1 or more"):
        make("spatial_reduction", ratio=ratio)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="size 0 must be 1 or more"):
        make("pooled_reduction", size=0)
