"""CrossViT as segmentation encoder: branches of small and large patches that exchange class tokens.

Chen et al., 2021, arXiv 2103.14899. Details that the paper leaves open follow measured outputs of
the published code. CrossViT has no published decoder for segmentation: those here come from the
literature on other encoders. They see the patches of both branches, and the class token, which
alone knows the other branch, is added to each patch (Ranftl et al., 2021, arXiv 2103.13413, `add`).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.conv import resize
from attnseg.layers.map_decoders import DECODERS
from attnseg.layers.tokens import AttentionFactory, Grid, Place, check_context
from attnseg.layers.vit import Block, PatchTokens, init_weights, tokens_to_map
from attnseg.models.model import (
    OF_CLASSIFIER,
    PublishedModule,
    SegmentationModel,
    check_choice,
    check_positive,
    translate_name,
)

NORM_EPS = 1e-6
PATCHES = (12, 16)  # Pixels along a side of a patch, in each branch.


@dataclass(frozen=True)
class CrossViTSize:
    """Dimensions of a named size; pairs are those of the two branches.

    Attributes:
        dims: widths.
        num_heads: heads of both branches.
        depths: transformer blocks of a branch between two exchanges.
        exchanges: number of exchanges.
    """

    dims: tuple[int, int]
    num_heads: int
    depths: tuple[int, int]
    exchanges: int


SIZES = {
    "tiny": CrossViTSize((48, 96), 3, (1, 1), 1),  # Ours, for tests and laptops.
    "crossvit-ti": CrossViTSize((96, 192), 3, (1, 4), 3),
    "crossvit-s": CrossViTSize((192, 384), 6, (1, 4), 3),
    "crossvit-b": CrossViTSize((384, 768), 12, (1, 4), 3),
}


class ClassTokenFusion(nn.Module):
    """The class token of one branch attends to the patches of the other one, and comes back.

    The paper's cross-attention fusion. As published, the result replaces the token; there is no
    residual connection around the whole.

    Args:
        dim: width of the token's own branch.
        other_dim: width of the other branch.
        attn: attention of the other width that takes a context.
    """

    def __init__(self, dim: int, other_dim: int, attn: nn.Module) -> None:
        super().__init__()
        self.project = _norm_gelu_linear(dim, other_dim)
        self.norm = nn.LayerNorm(other_dim, eps=NORM_EPS)
        self.attn = attn
        self.revert = _norm_gelu_linear(other_dim, dim)

    def forward(self, class_token: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Fuse a class token `[B, 1, dim]` with patches `[B, h * w, other_dim]` on a grid (h, w).

        Returns:
            The class token that replaces the given one, `[B, 1, dim]`.
        """
        projected = self.project(class_token)
        normed = self.norm(torch.cat((projected, patches), 1))
        attended = self.attn(normed[:, :1], (0, 0), normed, grid)
        fused: Tensor = self.revert(projected + attended)
        return fused


def _norm_gelu_linear(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim, eps=NORM_EPS), nn.GELU(), nn.Linear(dim, out_dim))


class MultiScaleBlock(nn.Module):
    """Transformer blocks in each branch, then one exchange of class tokens.

    Args:
        size: dimensions.
        attn: builds the attention of the blocks.
        cross_attn: builds the attention of the exchange.
        mlp_ratio: hidden width of the MLPs, as a multiple of the tokens' width.
        grids: of each branch.
        numbers: numbers of the attentions, as in `Place.block`.
    """

    def __init__(
        self,
        size: CrossViTSize,
        attn: AttentionFactory,
        cross_attn: AttentionFactory,
        mlp_ratio: float,
        grids: Sequence[Grid],
        numbers: Iterator[int],
    ) -> None:
        super().__init__()
        dims, heads = size.dims, size.num_heads
        self.branches = nn.ModuleList(
            nn.ModuleList(
                Block(
                    dims[i],
                    attn(dims[i], heads, place=Place(i, next(numbers), grids[i])),
                    NORM_EPS,
                    mlp_ratio=mlp_ratio,
                )
                for _ in range(size.depths[i])
            )
            for i in (0, 1)
        )
        self.fusions = nn.ModuleList(
            ClassTokenFusion(
                dims[own],
                dims[other],
                cross_attn(dims[other], heads, place=Place(other, next(numbers), grids[other])),
            )
            for own, other in ((0, 1), (1, 0))
        )

    def forward(self, tokens: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """Map the tokens `[B, 1 + h * w, dim]` of both branches to the same shapes."""
        encoded = []
        for blocks, x, grid in zip(self.branches, tokens, grids, strict=True):
            for block in blocks.children():
                x = block(x, grid)
            encoded.append(x)
        others = zip(reversed(encoded), reversed(grids), strict=True)
        return [
            torch.cat((fuse(x[:, :1], other[:, 1:], grid), x[:, 1:]), 1)
            for fuse, x, (other, grid) in zip(self.fusions, encoded, others, strict=True)
        ]


class CrossViTEncoder(nn.Module):
    """Both branches, each with patches of its own size, up to their final norms.

    Args:
        in_channels: channels of the image.
        size: dimensions.
        attn: builds the attention of the blocks.
        cross_attn: builds the attention of the exchanges.
        mlp_ratio: hidden width of the MLPs, as a multiple of the tokens' width.
        image_size: height and width that the positions are learned for.
        grids: of each branch at that size; `None` is as many patches as fit best.
    """

    def __init__(
        self,
        in_channels: int,
        size: CrossViTSize,
        attn: AttentionFactory,
        cross_attn: AttentionFactory,
        mlp_ratio: float,
        image_size: tuple[int, int],
        grids: Sequence[Grid] | None = None,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        unit_grids = [(image_size[0] / patch, image_size[1] / patch) for patch in PATCHES]
        self.grids = grids or [_round_grid(*grid) for grid in unit_grids]
        self.embeds = nn.ModuleList(
            PatchTokens(in_channels, dim, patch, grid, class_token=True)
            for dim, patch, grid in zip(size.dims, PATCHES, self.grids, strict=True)
        )
        numbers = itertools.count()
        self.blocks = nn.ModuleList(
            MultiScaleBlock(size, attn, cross_attn, mlp_ratio, self.grids, numbers)
            for _ in range(size.exchanges)
        )
        self.blocks.apply(init_weights)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPS) for dim in size.dims)

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Grid]]:
        """Encode images `[B, C, H, W]`, resized for each branch to whole patches.

        Returns:
            Tokens `[B, 1 + h * w, dim]` and the grid (h, w) of each branch.
        """
        embedded = [
            embed(self._fit_patches(image, grid, patch))
            for embed, grid, patch in zip(self.embeds, self.grids, PATCHES, strict=True)
        ]
        tokens, grids = [x for x, _ in embedded], [grid for _, grid in embedded]
        for block in self.blocks:
            tokens = block(tokens, grids)
        return [norm(x) for norm, x in zip(self.norms, tokens, strict=True)], grids

    def _fit_patches(self, image: Tensor, grid: Grid, patch: int) -> Tensor:
        """Resize an image to whole patches; the grid grows with the image."""
        (height, width), (built_height, built_width) = image.shape[2:], self.image_size
        rows, columns = _round_grid(grid[0] * height / built_height, grid[1] * width / built_width)
        size = (rows * patch, columns * patch)
        return image if size == (height, width) else F.interpolate(image, size, mode="bicubic")


def _round_grid(rows: float, columns: float) -> Grid:
    return max(1, round(rows)), max(1, round(columns))


class CrossViT(SegmentationModel):
    """CrossViT as encoder, with a chosen decoder and attention; images of any size.

    Args:
        in_channels: channels of the image.
        num_classes: K, channels of the logits.
        image_size: height and width that the positions are learned for.
        attn: builds the attention of every block; published: QKV.
        cross_attn: builds the attention of the exchanges, which must take a context; published:
            QKV.
        size: `tiny`, `crossvit-ti`, `crossvit-s` or `crossvit-b`.
        decoder: `mlp`, `mlp_plain` (the same, layer by layer), `fpn` or `u`.
        decoder_channels: width of the decoder.
        mlp_ratio: hidden width of the MLPs, as a multiple of the tokens' width.

    Raises:
        ValueError: an unknown size or decoder, or an attention of the exchange that takes no
            context.
    """

    unused_names: ClassVar = ((r"head\..+", OF_CLASSIFIER),)

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        attn: AttentionFactory,
        cross_attn: AttentionFactory,
        size: str = "crossvit-s",
        decoder: str = "mlp",
        decoder_channels: int = 256,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_choice("size", size, SIZES)
        check_choice("decoder", decoder, DECODERS)
        check_positive(decoder_channels=decoder_channels)
        dims = SIZES[size].dims
        self.encoder = CrossViTEncoder(
            in_channels, SIZES[size], attn, cross_attn, mlp_ratio, image_size
        )
        crossing = self.get_submodule("encoder.blocks.0.fusions.0.attn")
        check_context("cross_attn", crossing, dims[1], (0, 0), self.encoder.grids[1])
        self.decoder = DECODERS[decoder](dims, decoder_channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Segment images `[B, C, H, W]`; see `SegmentationModel.forward`."""
        maps = [
            tokens_to_map(x[:, 1:] + x[:, :1], grid)
            for x, grid in zip(*self.encoder(image), strict=True)
        ]
        return resize(self.decoder(maps), (image.shape[2], image.shape[3]))

    def official_split(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Split the joint `qkv` projection of a block."""
        return split_qkv(name, value)

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published classifier; its heads are not used here."""
        return translate_name(name, OFFICIAL_NAMES)


class CrossViTClassifier(PublishedModule):
    """The published image classifier: the mean of two linear layers on the class tokens."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        attn: AttentionFactory,
        size: CrossViTSize,
        image_size: tuple[int, int],
        grids: Sequence[Grid] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = CrossViTEncoder(in_channels, size, attn, attn, 4.0, image_size, grids)
        self.heads = nn.ModuleList(nn.Linear(dim, num_classes) for dim in size.dims)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images `[B, C, H, W]`: logits `[B, K]`."""
        tokens, _ = self.encoder(image)
        logits = [head(x[:, 0]) for head, x in zip(self.heads, tokens, strict=True)]
        return torch.stack(logits).mean(0)

    def official_split(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Split the joint `qkv` projection of a block."""
        return split_qkv(name, value)

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published classifier."""
        return translate_name(name, (*OFFICIAL_NAMES, (r"head\.(.+)", "heads.{0}")))


def split_qkv(name: str, value: Tensor) -> dict[str, Tensor]:
    """Split a joint `qkv` projection into those of queries, keys and values."""
    if ".attn.qkv." not in name:
        return {name: value}
    parts = zip("qkv", value.chunk(3), strict=True)
    return {name.replace(".qkv.", f".{role}."): part for role, part in parts}


BLOCK, OURS = r"blocks\.(\d)\.blocks\.(\d)\.(\d+)\.", "encoder.blocks.{0}.branches.{1}.{2}."
FUSION, OURS_FUSION = r"blocks\.(\d)\.fusion\.(\d)\.", "encoder.blocks.{0}.fusions.{1}."
OFFICIAL_NAMES = (
    (r"patch_embed\.(\d)\.(.+)", "encoder.embeds.{0}.{1}"),
    (r"(pos_embed|cls_token)\.(\d)", "encoder.embeds.{1}.{0}"),
    (BLOCK + r"attn\.([qkv])\.(.+)", OURS + "attn.project.{3}.linear.{4}"),
    (BLOCK + r"attn\.proj\.(.+)", OURS + "attn.out.{3}"),
    (BLOCK + r"((?:norm|mlp).+)", OURS + "{3}"),
    (r"blocks\.(\d)\.projs\.(\d)\.(.+)", OURS_FUSION + "project.{2}"),
    (FUSION + r"norm1\.(.+)", OURS_FUSION + "norm.{2}"),
    (FUSION + r"attn\.w([qkv])\.(.+)", OURS_FUSION + "attn.project.{2}.linear.{3}"),
    (FUSION + r"attn\.proj\.(.+)", OURS_FUSION + "attn.out.{2}"),
    (r"blocks\.(\d)\.revert_projs\.(\d)\.(.+)", OURS_FUSION + "revert.{2}"),
    (r"norm\.(\d)\.(.+)", "encoder.norms.{0}.{1}"),
)
