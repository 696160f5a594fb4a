"""MISSFormer: a U-shaped transformer whose skip connections pass through one context bridge.

Huang et al., 2021, arXiv 2109.07162. Details that the paper leaves open follow measured outputs of
the published code. Left out are its 7,009,792 parameters (of 42,462,537) that no output depends on,
and its second evaluation of each `fc1`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.mix_transformer import (
    EncoderStage,
    MixFFN,
    PatchClassify,
    PatchExpand,
    arrange_cells,
    collect_cells,
    layer_norm,
)
from attnseg.layers.tokens import AttentionFactory, Grid, Place, check_context
from attnseg.layers.vit import tokens_to_map
from attnseg.models.model import DEAD, SegmentationModel, check_choice, translate_name

STRIDE = 32  # Pixels per token of the deepest level.
FACTORS = (8, 4, 2, 1)  # Tokens of each level along a side of one of the deepest level.
WINDOWS = ((7, 4), (3, 2), (3, 2), (3, 2))  # Kernel and stride of the patches of each level.
DEPTH = 2  # Blocks per stage, in the encoder and in the decoder.


@dataclass(frozen=True)
class MISSFormerSize:
    """Dimensions of a named size.

    The first width is that of a head and of the bridge's tokens, and divides the others.
    """

    dims: tuple[int, int, int, int]
    bridge_depth: int


SIZES = {
    "tiny": MISSFormerSize((32, 64, 96, 128), 1),  # Ours, for tests and laptops.
    "base": MISSFormerSize((64, 128, 320, 512), 4),
}


class MixBlock(nn.Module):
    """Pre-norm transformer block: `x + attention(norm x)`, then `x + mixffn(norm x)`."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = attn
        self.norm2 = layer_norm(dim)
        self.mlp = MixFFN(dim, round(mlp_ratio * dim))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens `[B, N, C]` on a grid (h, w) to the same shape."""
        x = x + self.attn(self.norm1(x), grid)
        out: Tensor = x + self.mlp(self.norm2(x), grid)
        return out


def join_levels(levels: Sequence[Tensor], grid: Grid, dim: int) -> Tensor:
    """Cut the tokens of all levels to one width and sort them by the place that they cover.

    A token of width k C becomes k tokens of width C. Those that cover one token of the deepest
    level lie beside one another, finest level first: T of them, 124 at the published widths.

    Args:
        levels: tokens `[B, h f * w f, k C]` of each level; f is its factor.
        grid: (h, w) of the deepest level.
        dim: C.

    Returns:
        Tokens `[B, h * w * T, C]`, in row-major order on the grid (h, w T).
    """
    cells = [
        collect_cells(level, (grid[0] * factor, grid[1] * factor), factor).flatten(2)
        for level, factor in zip(levels, FACTORS, strict=True)
    ]
    cut: Tensor = torch.cat(cells, 2).unflatten(2, (-1, dim))
    return cut.flatten(1, 2)


def split_levels(tokens: Tensor, grid: Grid, dims: Sequence[int]) -> list[Tensor]:
    """Undo `join_levels` for levels of the widths `dims`; the grid is that of the deepest one."""
    sizes = [dim * factor**2 for dim, factor in zip(dims, FACTORS, strict=True)]
    cells = tokens.unflatten(1, (grid[0] * grid[1], -1)).flatten(2).split(sizes, 2)
    return [
        arrange_cells(cell.unflatten(2, (factor**2, -1)), grid, factor)
        for cell, factor in zip(cells, FACTORS, strict=True)
    ]


class BridgeLayer(nn.Module):
    """One layer of the Enhanced Transformer Context Bridge: tokens of all levels see all levels.

    Every level gives queries at its full size. It gives keys and values at the deepest level's
    size, by a convolution whose stride is its kernel. A feed-forward network per level follows.

    Args:
        dims: widths of the levels.
        attn: attention of the first width that takes a context.
        mlp_ratio: hidden width of the feed-forward networks, as a multiple of a level's width.
    """

    def __init__(self, dims: Sequence[int], attn: nn.Module, mlp_ratio: float) -> None:
        super().__init__()
        self.dims = dims
        self.norm1 = layer_norm(dims[0])
        self.reduce = nn.ModuleList(
            nn.Conv2d(dim, dim, factor, factor)
            for dim, factor in zip(dims[:-1], FACTORS[:-1], strict=True)
        )
        self.reduce_norm = layer_norm(dims[0])
        self.attn = attn
        self.norm2 = layer_norm(dims[0])
        self.mlps = nn.ModuleList(MixFFN(dim, round(mlp_ratio * dim)) for dim in dims)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Map the joined tokens `[B, h * w * T, C]` of all levels to the same shape."""
        normed = self.norm1(tokens)
        context = self.reduce_norm(self._reduce(normed, grid))
        rows = grid[0]
        query_grid, key_grid = ((rows, x.shape[1] // rows) for x in (tokens, context))
        tokens = tokens + self.attn(normed, query_grid, context, key_grid)
        levels = [
            mlp(level, (grid[0] * factor, grid[1] * factor))
            for mlp, level, factor in zip(
                self.mlps, split_levels(self.norm2(tokens), grid, self.dims), FACTORS, strict=True
            )
        ]
        return tokens + join_levels(levels, grid, self.dims[0])

    def _reduce(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Return the tokens `[B, h * w * K, C]` that give keys and values, on the grid (h, w K)."""
        *finer, deepest = split_levels(tokens, grid, self.dims)
        dim = self.dims[0]
        keys = []
        for conv, level, factor in zip(self.reduce, finer, FACTORS[:-1], strict=True):
            reduced = conv(tokens_to_map(level, (grid[0] * factor, grid[1] * factor)))
            # As published, one of k tokens has every k-th channel of a reduced map; of the deepest
            # map, it has neighbouring channels.
            keys.append(reduced.flatten(2).unflatten(1, (dim, -1)).permute(0, 3, 2, 1))
        keys.append(deepest.unflatten(2, (-1, dim)))
        return torch.cat(keys, 2).flatten(1, 2)


class UpStage(nn.Module):
    """Joins the skip connection, applies the blocks, and expands the patches."""

    def __init__(
        self, in_dim: int, dim: int, blocks: list[MixBlock], expand: PatchExpand | PatchClassify
    ) -> None:
        super().__init__()
        self.reduce = nn.Linear(in_dim + dim, dim)
        self.blocks = nn.ModuleList(blocks)
        self.expand = expand

    def forward(self, x: Tensor, skip: Tensor, grid: Grid) -> Tensor:
        """Map the decoder's tokens and the skip on one grid to tokens on a finer one."""
        x = self.reduce(torch.cat((x, skip), 2))
        for block in self.blocks:
            x = block(x, grid)
        out: Tensor = self.expand(x, grid)
        return out


class MISSFormer(SegmentationModel):
    """MISSFormer with a chosen attention; zeros complete images to multiples of 32 pixels.

    Args:
        in_channels: channels of the image.
        num_classes: K, channels of the logits.
        image_size: height and width of the images for which an attention may prepare; no other
            parameter depends on it.
        attn: builds the attention of every block; published: spatial reduction.
        bridge_attn: builds the bridge's attention, which must take a context; published: QKV.
        size: `tiny` or `base`.
        mlp_ratio: hidden width of the feed-forward networks, as a multiple of the tokens' width.

    Raises:
        ValueError: an unknown size, or an attention of the bridge that takes no context.
    """

    unused_names: ClassVar = (
        (r"decoder_3\.(?!layer_up\.).+", DEAD),
        (r".+\.(mlp|mixffn\d)\.norm[23]\..+", DEAD),
    )

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        attn: AttentionFactory,
        bridge_attn: AttentionFactory,
        size: str = "base",
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_choice("size", size, SIZES)
        dims = SIZES[size].dims
        heads = [dim // dims[0] for dim in dims]
        deepest = (-(-image_size[0] // STRIDE), -(-image_size[1] // STRIDE))
        number = itertools.count()

        def make_blocks(level: int) -> list[MixBlock]:
            grid = (deepest[0] * FACTORS[level], deepest[1] * FACTORS[level])
            places = [Place(level, next(number), grid) for _ in range(DEPTH)]
            return [
                MixBlock(dims[level], attn(dims[level], heads[level], place=place), mlp_ratio)
                for place in places
            ]

        inputs = (in_channels, *dims[:-1])
        self.stages = nn.ModuleList(
            EncoderStage(inputs[i], dim, *WINDOWS[i], make_blocks(i)) for i, dim in enumerate(dims)
        )
        tokens = sum(count * factor**2 for count, factor in zip(heads, FACTORS, strict=True))
        joined = (deepest[0], deepest[1] * tokens)
        self.bridge = nn.ModuleList(
            BridgeLayer(
                dims, bridge_attn(dims[0], 1, place=Place(3, next(number), joined)), mlp_ratio
            )
            for _ in range(SIZES[size].bridge_depth)
        )
        keys = (deepest[0], deepest[1] * sum(heads))
        check_context("bridge_attn", self.get_submodule("bridge.0.attn"), dims[0], joined, keys)
        self.expand = PatchExpand(dims[3], dims[3] // 2, 2)
        ends: tuple[PatchExpand | PatchClassify, ...] = (
            PatchExpand(dims[2], dims[2] // 2, 2),
            PatchExpand(dims[1], dims[1] // 2, 2),
            PatchClassify(dims[0], dims[0], 4, num_classes),
        )
        self.decoder = nn.ModuleList(
            UpStage(dims[level + 1] // 2, dims[level], make_blocks(level), end)
            for level, end in zip((2, 1, 0), ends, strict=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Segment images `[B, C, H, W]`; see `SegmentationModel.forward`."""
        height, width = image.shape[2], image.shape[3]
        x = F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE))
        padded = (x.shape[2], x.shape[3])
        levels, grids = [], []
        for stage in self.stages:
            tokens, grid = stage(x)
            x = tokens_to_map(tokens, grid)
            levels.append(tokens)
            grids.append(grid)
        *skips, x = self.bridge_levels(levels, grids[-1])
        x = self.expand(x, grids[-1])
        for stage, skip, grid in zip(self.decoder, reversed(skips), grids[-2::-1], strict=True):
            x = stage(x, skip, grid)
        return tokens_to_map(x, padded)[:, :, :height, :width]

    def bridge_levels(self, levels: Sequence[Tensor], grid: Grid) -> list[Tensor]:
        """Return the tokens `[B, N, dim]` of each level after the bridge; see `join_levels`."""
        dims = [level.shape[2] for level in levels]
        tokens = join_levels(levels, grid, dims[0])
        for layer in self.bridge:
            tokens = layer(tokens, grid)
        return split_levels(tokens, grid, dims)

    def official_split(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Split the joint projection of keys and values; the classifier is a linear layer here."""
        if ".attn.kv." in name:
            parts = zip("kv", value.chunk(2), strict=True)
            return {name.replace(".kv.", f".{role}."): part for role, part in parts}
        return {name: value.flatten(1) if name.endswith("last_layer.weight") else value}

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published code's state dict."""
        return translate_name(name, OFFICIAL_NAMES, OFFICIAL_PARTS)


LAYER, LAYER_OURS = r"bridge\.bridge_layer(\d)\.", "bridge.{0-1}."
OFFICIAL_NAMES = (
    (r"backbone\.patch_embed(\d)\.proj\.(.+)", "stages.{0-1}.proj.{1}"),
    (r"backbone\.patch_embed(\d)\.norm\.(.+)", "stages.{0-1}.proj_norm.{1}"),
    (r"backbone\.norm(\d)\.(.+)", "stages.{0-1}.norm.{1}"),
    (r"backbone\.block(\d)\.(.+)", "stages.{0-1}.blocks.{1}"),
    (LAYER + r"attn\.scale_reduce\.sr(\d)\.(.+)", LAYER_OURS + "reduce.{1}.{2}"),
    (LAYER + r"attn\.scale_reduce\.norm\.(.+)", LAYER_OURS + "reduce_norm.{1}"),
    (LAYER + r"mixffn(\d)\.(.+)", LAYER_OURS + "mlps.{1-1}.{2}"),
    (LAYER + r"(.+)", LAYER_OURS + "{1}"),
    (r"decoder_3\.layer_up\.(.+)", "expand.{0}"),
    (r"decoder_2\.(.+)", "decoder.0.{0}"),  # It runs before decoder_1.
    (r"decoder_1\.(.+)", "decoder.1.{0}"),
    (r"decoder_0\.last_layer\.(.+)", "decoder.2.expand.classify.{0}"),
    (r"decoder_0\.(.+)", "decoder.2.{0}"),
)
# Names within a block, a layer of the bridge or a stage of the decoder.
OFFICIAL_PARTS = (
    (r"attn\.([qkv])\.", r"attn.project.\1.linear."),
    (r"attn\.proj\.", "attn.out."),
    (r"attn\.sr\.", "attn.gather.conv."),
    (r"attn\.norm\.", "attn.gather.norm."),
    (r"dwconv\.dwconv\.", "dwconv."),
    (r"(mlp|mlps\.\d)\.norm1\.", r"\1.norm."),
    (r"concat_linear\.", "reduce."),
    (r"layer_up\.", "expand."),
    (r"layer_former_1\.", "blocks.0."),
    (r"layer_former_2\.", "blocks.1."),
)
