"""Blocks of Swin and the attention of NAT, equal to the published ones on the same weights."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attnseg.attention.attention import Attention
from attnseg.layers.tokens import Place
from attnseg.layers.vit import Block
from tests.golden.recipe import Golden

SWIN = [  # file, grid, window, heads, options, grid with the zeros
    ("w4_8x8", (8, 8), 4, 4, {}, (8, 8)),
    ("w4_8x16", (8, 16), 4, 4, {}, (8, 16)),
    ("w7_7x7", (7, 7), 7, 4, {}, (7, 7)),
    ("w7_7x7_dense", (7, 7), 7, 4, {"cut_to_grid": False}, (7, 7)),
    ("w4_6x10_pad", (6, 10), 4, 4, {}, (8, 12)),
]
NAT = [("k3_6x8", (6, 8), 3, 2), ("k7_9x12", (9, 12), 7, 2)]


def split_projections(weights):
    """Weights of ours from those of a fused projection and of a table of biases."""
    ours = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"(.*?)qkv\.(weight|bias)", name):
            for role, part in zip("qkv", value.chunk(3), strict=True):
                ours[f"{match[1]}project.{role}.linear.{match[2]}"] = part
        elif name == "rpb":
            ours["mix.bias.table"] = value.flatten(1).T
        else:
            name = name.replace("relative_position_bias_table", "mix.bias.table")
            ours[re.sub(r"\bproj\.", "out.", name)] = value
    return ours


class Padded(torch.nn.Module):
    """Adds tokens of zeros before an attention: the published dense code attends to them, too."""

    def __init__(self, attention, grid):
        super().__init__()
        self.attention, self.grid = attention, grid

    def forward(self, x, grid):
        below, right = self.grid[0] - grid[0], self.grid[1] - grid[1]
        x = F.pad(x.unflatten(1, grid), (0, 0, 0, right, 0, below)).flatten(1, 2)
        return (
            self.attention(x, self.grid)
            .unflatten(1, self.grid)[:, : grid[0], : grid[1]]
            .flatten(1, 2)
        )


def difference(golden, ours):
    """Largest difference to the stored output, as a share of its tolerance."""
    tolerance = max(2e-6, 5 * float(golden.stored["float32_vs_float64_maxabs"]))
    return np.abs(ours.numpy() - golden.stored["logits"]).max() / tolerance


@pytest.mark.parametrize(("file", "grid", "size", "heads", "options", "padded"), SWIN)
@torch.no_grad()
def test_swin_block_pairs(file, grid, size, heads, options, padded):
    golden = Golden(f"swin_block_pair_{file}")
    width = golden.image.shape[-1]
    blocks = torch.nn.Module()
    blocks.blocks = torch.nn.ModuleList()
    for number in range(2):
        options = {"size": size, "shift": True, **options}
        place = Place(0, number, grid)
        attention = Attention(width, heads, mixing="window", mixing_options=options, place=place)
        blocks.blocks.append(Block(width, attention, 1e-5))
    blocks.load_state_dict(split_projections(golden.weights))
    x = golden.image
    for block in blocks.blocks:
        block.attn = Padded(block.attn, padded)
        x = block(x, grid)
    share = difference(golden, x)
    print(f"{file}: {share:.2f} of the tolerance")
    assert share < 1


@pytest.mark.parametrize(("file", "grid", "size", "heads"), NAT)
@torch.no_grad()
def test_neighborhood_attention(file, grid, size, heads):
    golden = Golden(f"nat_attention_{file}")
    attention = Attention(64, heads, mixing="neighborhood", mixing_options={"size": size})
    attention.load_state_dict(split_projections(golden.weights))
    out = attention(golden.image.flatten(1, 2), grid).unflatten(1, grid)
    share = difference(golden, out)
    print(f"{file}: {share:.2f} of the tolerance")
    assert share < 1
