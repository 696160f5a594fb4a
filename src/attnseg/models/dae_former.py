"""DAE-Former: a U-shaped transformer whose blocks attend twice, over space and over channels.

Azad et al., 2023, arXiv 2212.13504. Details that the paper leaves open follow the published code,
without its 18,382,864 parameters (of 48,073,065) that no output depends on, and without its second
evaluation of each `fc1`.
"""

import itertools
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attnseg.layers.mix_transformer import (
    EncoderStage,
    MixFFN,
    PatchClassify,
    PatchExpand,
    layer_norm,
)
from attnseg.layers.narrow import softmax
from attnseg.layers.tokens import AttentionFactory, Grid, Place
from attnseg.layers.vit import tokens_to_map
from attnseg.models.model import (
    DEAD,
    SegmentationModel,
    check_choice,
    check_divisible,
    translate_name,
)

STRIDE = 16  # Pixels per token of the last stage.
CHANNEL_HEADS = 8
FUSIONS = ("sequential", "additive", "concatenation")


@dataclass(frozen=True)
class DAEFormerSize:
    """Dimensions of a named size: width of each stage, blocks per stage."""

    dims: tuple[int, int, int]
    depth: int


SIZES = {
    "tiny": DAEFormerSize((32, 64, 96), 1),  # Ours, for tests and laptops.
    "base": DAEFormerSize((128, 320, 512), 2),
}


class DualBlock(nn.Module):
    """Attention over space and over channels, each followed by its feed-forward network.

    Args:
        dim: width of the tokens.
        attn: builds the spatial attention (one head, as published).
        channel_attn: builds the channel attention (eight heads, no bias).
        fusion: `sequential` is the published block: space, then channels. `additive` applies both
            to the block's input and sums their changes; `concatenation` concatenates and projects
            the changes. The paper's ablation has variants of these names but does not say how they
            are wired, so the last two are ours.
        mlp_ratio: hidden width of the feed-forward networks, as a multiple of `dim`.
        place: where in the model the block stands.
    """

    def __init__(
        self,
        dim: int,
        attn: AttentionFactory,
        channel_attn: AttentionFactory,
        fusion: str,
        mlp_ratio: float,
        place: Place,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer_norm(dim), layer_norm(dim)
        self.norm3, self.norm4 = layer_norm(dim), layer_norm(dim)
        self.attn = attn(dim, 1, place=place)
        self.mlp1 = MixFFN(dim, round(mlp_ratio * dim))
        self.channel_attn = channel_attn(dim, CHANNEL_HEADS, bias=False, place=place)
        self.mlp2 = MixFFN(dim, round(mlp_ratio * dim))
        self.fusion = fusion
        self.join = nn.Linear(2 * dim, dim) if fusion == "concatenation" else None

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens `[B, N, C]` on a grid (h, w) to the same shape."""
        if self.fusion == "sequential":
            return self._channels(self._space(x, grid), grid)
        space, channels = self._space(x, grid) - x, self._channels(x, grid) - x
        if self.join is None:
            return x + space + channels
        joined: Tensor = self.join(torch.cat((space, channels), 2))
        return x + joined

    def _space(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.attn(self.norm1(x), grid)
        out: Tensor = x + self.mlp1(self.norm2(x), grid)
        return out

    def _channels(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.channel_attn(self.norm3(x), grid)
        out: Tensor = x + self.mlp2(self.norm4(x), grid)
        return out


class SkipCrossAttention(nn.Module):
    """Skip connection by efficient attention without projections.

    Keys and queries are the encoder's skip, values the decoder's feature, as in the published
    code; the paper's text has it the other way round.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.out = nn.Linear(dim, 2 * dim)
        self.out_norm = layer_norm(2 * dim)
        self.norm2 = layer_norm(2 * dim)
        self.mlp = MixFFN(2 * dim, 4 * dim)

    def forward(self, x: Tensor, skip: Tensor, grid: Grid) -> Tensor:
        """Join the decoder's `[B, N, C]` and the skip `[B, N, C]` to `[B, N, 2 C]`."""
        values, queries = self.norm1(x), self.norm1(skip)
        # In this order, the softmax over tokens gets its gradient in its own memory layout.
        context = (values.transpose(1, 2) @ softmax(queries, 1)).transpose(1, 2)
        # Projecting the D contexts instead of the N tokens gives the same for fewer operations: the
        # softmax over channels sums to 1, so the bias stays as it is.
        attended = self.out_norm(softmax(queries, 2) @ self.out(context))
        joined = torch.cat((x, skip), 2) + attended
        out: Tensor = joined + self.mlp(self.norm2(joined), grid)
        return out


class DecoderStage(nn.Module):
    """Joins the skip connection, applies two dual blocks, and expands."""

    def __init__(
        self,
        in_dim: int,
        dim: int,
        blocks: list[DualBlock],
        expand: PatchExpand | PatchClassify,
    ) -> None:
        super().__init__()
        self.align = nn.Linear(in_dim, dim)
        self.cross = SkipCrossAttention(dim)
        self.reduce = nn.Linear(2 * dim, dim)
        self.blocks = nn.ModuleList(blocks)
        self.expand = expand

    def forward(self, x: Tensor, skip: Tensor, grid: Grid) -> Tensor:
        """Map the decoder's tokens and the skip on one grid to tokens on a finer one."""
        x = self.reduce(self.cross(self.align(x), skip, grid))
        for block in self.blocks:
            x = block(x, grid)
        out: Tensor = self.expand(x, grid)
        return out


class DAEFormer(SegmentationModel):
    """DAE-Former with a chosen spatial and channel attention; images in multiples of 16 pixels.

    Args:
        in_channels: channels of the image.
        num_classes: K, channels of the logits.
        image_size: height and width of the images for which an attention may prepare; no other
            parameter depends on it.
        attn: builds the spatial attention of every block; published: efficient.
        channel_attn: builds the channel attention; published: transpose.
        size: `tiny` or `base`.
        fusion: combination of a block's two attentions, see `DualBlock`.
        mlp_ratio: hidden width of the feed-forward networks, as a multiple of the tokens' width.

    Raises:
        ValueError: an unknown size or fusion, or an image size that does not fit.
    """

    unused_names: ClassVar = (
        (r"decoder_2\.(?!layer_up\.).+", DEAD),
        (r".+\.mlp\d?\.norm[23]\..+", DEAD),
    )

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        attn: AttentionFactory,
        channel_attn: AttentionFactory,
        size: str = "base",
        fusion: str = "sequential",
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_choice("size", size, SIZES)
        check_choice("fusion", fusion, FUSIONS)
        check_divisible("image_size", image_size, STRIDE)
        dims, depth = SIZES[size].dims, SIZES[size].depth

        number = itertools.count()

        def make_blocks(stage: int, count: int) -> list[DualBlock]:
            patch = 4 * 2**stage  # Pixels per token.
            grid = (image_size[0] // patch, image_size[1] // patch)
            return [
                DualBlock(
                    dims[stage],
                    attn,
                    channel_attn,
                    fusion,
                    mlp_ratio,
                    Place(stage, next(number), grid),
                )
                for _ in range(count)
            ]

        inputs = (in_channels, *dims[:2])
        windows = ((7, 4), (3, 2), (3, 2))  # kernel and stride
        self.stages = nn.ModuleList(
            EncoderStage(inputs[i], dim, *windows[i], make_blocks(i, depth))
            for i, dim in enumerate(dims)
        )
        low, mid, high = dims
        self.expand = PatchExpand(high, high // 2, 2)
        first = DecoderStage(high // 2, mid, make_blocks(1, 2), PatchExpand(mid, mid // 2, 2))
        second = DecoderStage(
            mid // 2, low, make_blocks(0, 2), PatchClassify(low, low, 4, num_classes)
        )
        self.decoder = nn.ModuleList([first, second])

    def forward(self, image: Tensor) -> Tensor:
        """Segment images `[B, C, H, W]`; see `SegmentationModel.forward`."""
        size = (image.shape[2], image.shape[3])
        check_divisible("image", size, STRIDE)
        x, skips = image, []
        for stage in self.stages:
            skips.append(stage(x))
            x = tokens_to_map(*skips[-1])
        x = self.expand(*skips.pop())
        for stage in self.decoder:
            x = stage(x, *skips.pop())
        return tokens_to_map(x, size)

    def official_split(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Split the channel attention's projection; 1x1 convolutions are linear layers here."""
        if name.endswith("channel_attn.qkv.weight"):
            parts = zip("qkv", value.chunk(3), strict=True)
            return {name.replace("qkv", role): part for role, part in parts}
        if re.search(r"(attn\.(keys|queries|values|reprojection)|last_layer)\.weight$", name):
            return {name: value.flatten(1)}
        return {name: value}

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published code's state dict."""
        return translate_name(name, OFFICIAL_NAMES, OFFICIAL_PARTS)


OFFICIAL_NAMES = (
    (r"backbone\.patch_embed(\d)\.proj\.(.+)", "stages.{0-1}.proj.{1}"),
    (r"backbone\.patch_embed(\d)\.norm\.(.+)", "stages.{0-1}.proj_norm.{1}"),
    (r"backbone\.norm(\d)\.(.+)", "stages.{0-1}.norm.{1}"),
    (r"backbone\.block(\d)\.(.+)", "stages.{0-1}.blocks.{1}"),
    (r"decoder_2\.layer_up\.(.+)", "expand.{0}"),
    (r"decoder_0\.last_layer\.(.+)", "decoder.1.expand.classify.{0}"),
    (r"decoder_1\.(.+)", "decoder.0.{0}"),  # It runs before decoder_0.
    (r"decoder_0\.(.+)", "decoder.1.{0}"),
)
# Names within a block or decoder stage; norm2 and norm3 of a feed-forward network are never used.
OFFICIAL_PARTS = (
    (r"(?<!channel_)attn\.queries\.", "attn.project.q.linear."),
    (r"(?<!channel_)attn\.keys\.", "attn.project.k.linear."),
    (r"(?<!channel_)attn\.values\.", "attn.project.v.linear."),
    (r"channel_attn\.([qkv])\.", r"channel_attn.project.\1.linear."),
    (r"channel_attn\.temperature", "channel_attn.mix.temperature"),
    (r"channel_attn\.proj\.", "channel_attn.out."),
    (r"cross_attn\.attn\.reprojection\.", "cross.out."),
    (r"cross_attn\.attn\.norm\.", "cross.out_norm."),
    (r"cross_attn\.", "cross."),
    (r"attn\.reprojection\.", "attn.out."),
    (r"dwconv\.dwconv\.", "dwconv."),
    (r"(mlp\d?)\.norm1\.", r"\1.norm."),
    (r"x1_linear\.", "align."),
    (r"concat_linear\.", "reduce."),
    (r"layer_up\.", "expand."),
    (r"layer_former_1\.", "blocks.0."),
    (r"layer_former_2\.", "blocks.1."),
)
