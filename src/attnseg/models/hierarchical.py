"""Hierarchical transformer for any attention: the skeleton of Swin, PVT v2, FocalNet and DaViT.

Four stages, each at half the resolution of the one before. The published encoders differ in their
attention, and in few details beside it, which a `Design` names:

- Swin Transformer, Liu et al., 2021, arXiv 2103.14030;
- PVT v2, Wang et al., 2022, arXiv 2106.13797;
- FocalNet, Yang et al., 2022, arXiv 2203.11926;
- DaViT, Ding et al., 2022, arXiv 2204.03645.

Details that the papers leave open follow the published codes, also where those are for images of
any size. The decoders are not theirs: they normalise the stage maps first.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.conv import resize
from attnseg.layers.map_decoders import DECODERS, MapNorm
from attnseg.layers.tokens import AttentionFactory, Grid, Place
from attnseg.layers.vit import DropPath, init_weights, tokens_to_map
from attnseg.models.model import SegmentationModel, check_choice, check_positive, translate_name

EMBED_EPS = 1e-5  # of the norms of embeddings


@dataclass(frozen=True)
class Design:
    """The details of a published encoder beside its attention.

    Attributes:
        overlapping: whether patches overlap, in the first embedding and in the others.
        merging: whether the other embeddings are linear layers of joined patches.
        norm_first: whether the other embeddings normalise before their convolution.
        positions: whether a depthwise convolution precedes each attention and each MLP.
        conv_mlp: whether MLPs have a depthwise convolution before their activation.
        stage_norm: whether a norm ends each stage, for the next stage as well.
        norm_eps: epsilon of the norms in and after blocks.
    """

    overlapping: tuple[bool, bool] = (False, False)
    merging: bool = False
    norm_first: bool = False
    positions: bool = False
    conv_mlp: bool = False
    stage_norm: bool = False
    norm_eps: float = 1e-5


DESIGNS = {
    "swin": Design(merging=True),
    "pvt_v2": Design((True, True), conv_mlp=True, stage_norm=True, norm_eps=1e-6),
    "focal": Design(),
    "davit": Design((True, False), norm_first=True, positions=True),
}


@dataclass(frozen=True)
class HierarchicalSize:
    """Dimensions of a named size, per stage.

    Attributes:
        design: one of `DESIGNS`.
        strides: of the embeddings.
        mlp_factors: multiples of the MLP ratio.
        drop_path: rate of the last block; it grows linearly from the first one on.
    """

    design: str
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    strides: tuple[int, ...] = (4, 2, 2, 2)
    mlp_factors: tuple[int, ...] = (1, 1, 1, 1)
    drop_path: float = 0.0


SIZES = {
    "tiny": HierarchicalSize("swin", (16, 32, 64, 96), (1, 1, 2, 1), (1, 2, 4, 6)),  # Ours.
    "swin_t": HierarchicalSize(
        "swin", (96, 192, 384, 768), (2, 2, 6, 2), (3, 6, 12, 24), drop_path=0.2
    ),
    "pvt_v2_b2": HierarchicalSize(
        "pvt_v2", (64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8),
        mlp_factors=(2, 2, 1, 1), drop_path=0.1,
    ),
    "focal_t": HierarchicalSize(
        "focal", (96, 192, 384, 768), (2, 2, 6, 2), (3, 6, 12, 24), drop_path=0.2
    ),
    "davit_t": HierarchicalSize(
        "davit", (96, 192, 384, 768), (2, 2, 6, 2), (3, 6, 12, 24), drop_path=0.1
    ),
}  # fmt: skip


def pad_to_multiple(x: Tensor, factor: int) -> Tensor:
    """Add zeros below and at the right of `[B, C, H, W]` to sides that a factor divides."""
    height, width = x.shape[2:]
    if height % factor or width % factor:
        return F.pad(x, (0, -width % factor, 0, -height % factor))
    return x


class PatchConv(nn.Module):
    """Makes one token of each patch by a convolution, with a norm before or after it."""

    def __init__(
        self, in_channels: int, dim: int, stride: int, overlapping: bool, norm_first: bool
    ) -> None:
        super().__init__()
        kernel = 2 * stride - 1 if overlapping else stride
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, kernel // 2 if overlapping else 0)
        self.before = MapNorm(in_channels) if norm_first else nn.Identity()
        self.after = nn.Identity() if norm_first else nn.LayerNorm(dim, eps=EMBED_EPS)
        self.multiple = 1 if overlapping else stride

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Cut `[B, C, H, W]` into tokens `[B, h * w, dim]` on a grid (h, w)."""
        x = self.proj(pad_to_multiple(self.before(x), self.multiple))
        tokens: Tensor = self.after(x.flatten(2).transpose(1, 2).contiguous())
        return tokens, (x.shape[2], x.shape[3])


class PatchMerging(nn.Module):
    """Joins the channels of each patch, normalises them, and projects them without bias."""

    def __init__(self, in_channels: int, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(stride * stride * in_channels, eps=EMBED_EPS)
        self.reduction = nn.Linear(stride * stride * in_channels, dim, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Merge `[B, C, H, W]` into tokens `[B, h * w, dim]` on a grid (h, w)."""
        x = pad_to_multiple(x, self.stride)
        cells = x.unflatten(3, (-1, self.stride)).unflatten(2, (-1, self.stride))  # B C h r w c
        # The published order of a patch is column by column.
        joined = cells.permute(0, 2, 4, 5, 3, 1).flatten(3)
        tokens: Tensor = self.reduction(self.norm(joined)).flatten(1, 2)
        return tokens, (joined.shape[1], joined.shape[2])


class TokenConv(nn.Module):
    """Depthwise 3x3 convolution of tokens on their grid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Convolve tokens `[B, h * w, C]` on a grid (h, w)."""
        out: Tensor = self.conv(tokens_to_map(x, grid))
        return out.flatten(2).transpose(1, 2)


class GridMlp(nn.Module):
    """Two linear layers with a GELU in between, and perhaps a depthwise convolution before it."""

    def __init__(self, dim: int, hidden: int, convolved: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.near = TokenConv(hidden) if convolved else None
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens `[B, N, C]` on a grid to tokens of the same shape."""
        hidden = self.fc1(x)
        if self.near is not None:
            hidden = self.near(hidden, grid)
        out: Tensor = self.fc2(F.gelu(hidden))
        return out


class HierarchicalBlock(nn.Module):
    """Pre-norm transformer block, with the convolutions of its design.

    Args:
        dim: width of the tokens.
        attn: the attention of the block.
        design: decides about convolutions and norms.
        hidden: width within the MLP.
        drop_path: rate at which a branch is dropped while training.
    """

    def __init__(
        self, dim: int, attn: nn.Module, design: Design, hidden: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.position1 = TokenConv(dim) if design.positions else None
        self.norm1 = nn.LayerNorm(dim, eps=design.norm_eps)
        self.attn = attn
        self.position2 = TokenConv(dim) if design.positions else None
        self.norm2 = nn.LayerNorm(dim, eps=design.norm_eps)
        self.mlp = GridMlp(dim, hidden, design.conv_mlp)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens `[B, N, C]` on a grid to tokens of the same shape."""
        if self.position1 is not None:
            x = x + self.position1(x, grid)
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        if self.position2 is not None:
            x = x + self.position2(x, grid)
        x = x + self.drop_path(self.mlp(self.norm2(x), grid))
        return x


class PyramidStage(nn.Module):
    """Embedding, blocks, and perhaps a norm."""

    def __init__(self, embed: nn.Module, blocks: list[HierarchicalBlock], norm: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, dim, h, w]`."""
        tokens, grid = self.embed(x)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens_to_map(self.norm(tokens), grid)


def make_stages(
    in_channels: int,
    image_size: tuple[int, int],
    attn: AttentionFactory,
    size: HierarchicalSize,
    design: Design,
    mlp_ratio: float,
) -> Iterator[PyramidStage]:
    """Build the stages of the encoder, from the finest to the coarsest."""
    inputs, grid, number = (in_channels, *size.dims), image_size, itertools.count()
    for stage, (dim, stride) in enumerate(zip(size.dims, size.strides, strict=True)):
        grid = (-(-grid[0] // stride), -(-grid[1] // stride))
        embed: nn.Module
        if stage and design.merging:
            embed = PatchMerging(inputs[stage], dim, stride)
        else:
            overlapping = design.overlapping[min(stage, 1)]
            norm_first = bool(stage) and design.norm_first
            embed = PatchConv(inputs[stage], dim, stride, overlapping, norm_first)
        blocks = []
        for block in itertools.islice(number, size.depths[stage]):
            mixer = attn(dim, size.num_heads[stage], place=Place(stage, block, grid))
            hidden = round(mlp_ratio * size.mlp_factors[stage] * dim)
            drop_path = size.drop_path * block / max(sum(size.depths) - 1, 1)
            blocks.append(HierarchicalBlock(dim, mixer, design, hidden, drop_path))
        norm = nn.LayerNorm(dim, eps=design.norm_eps) if design.stage_norm else nn.Identity()
        yield PyramidStage(embed, blocks, norm)


class Hierarchical(SegmentationModel):
    """Four stages with a chosen attention, and a decoder of their maps; images of any size.

    Args:
        in_channels: channels of the image.
        num_classes: K, channels of the logits.
        image_size: height and width of the images for which an attention may prepare; the model
            itself has no learned positions.
        attn: builds the attention of every block.
        size: `tiny`, `swin_t`, `pvt_v2_b2`, `focal_t` or `davit_t`.
        design: `swin`, `pvt_v2`, `focal` or `davit`; `None` is that of the size.
        decoder: `mlp`, `mlp_plain` (the same, layer by layer), `fpn` or `u`.
        decoder_channels: width of the decoder.
        mlp_ratio: hidden width of the MLPs, as a multiple of the tokens' width; PVT v2's first two
            stages have twice as much.

    Raises:
        ValueError: an unknown size, design or decoder.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        attn: AttentionFactory,
        size: str = "swin_t",
        design: str | None = None,
        decoder: str = "mlp",
        decoder_channels: int = 256,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        design = design or (SIZES[size].design if size in SIZES else "swin")
        check_choice("size", size, SIZES)
        check_choice("design", design, DESIGNS)
        check_choice("decoder", decoder, DECODERS)
        check_positive(decoder_channels=decoder_channels)
        self.design = design
        stages = make_stages(in_channels, image_size, attn, SIZES[size], DESIGNS[design], mlp_ratio)
        self.encoder = nn.ModuleList(stages)
        self.encoder.apply(init_weights)
        self.decoder = DECODERS[decoder](SIZES[size].dims, decoder_channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Segment images `[B, C, H, W]`; see `SegmentationModel.forward`."""
        x, maps = image, []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        return resize(self.decoder(maps), (image.shape[2], image.shape[3]))

    def official_split(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Split joint projections; focal modulation's 1x1 convolution is a linear layer here."""
        if name.endswith("modulation.h.weight"):
            return {name: value.flatten(1)}
        if not (joint := re.search(r"\.attn\.(q?kv)\.", name)):
            return {name: value}
        # DaViT's channel blocks call value, query and key what are query, key and value here.
        channels = re.match(r"main_blocks\.\d+\.\d+\.1\.", name.removeprefix("backbone."))
        roles = "vqk" if channels else joint[1]
        parts = zip(roles, value.chunk(len(roles)), strict=True)
        return {name.replace(f".{joint[1]}.", f".{role}."): part for role, part in parts}

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published code of the design."""
        name = re.sub(
            r"^main_blocks\.(\d+)\.(\d+)\.(\d)",
            lambda pair: f"main_blocks.{pair[1]}.{2 * int(pair[2]) + int(pair[3])}",
            name.removeprefix("backbone."),
        )
        return translate_name(name, OFFICIAL_NAMES[self.design], OFFICIAL_PARTS)


_SWIN = (
    (r"patch_embed\.proj\.(.+)", "encoder.0.embed.proj.{0}"),
    (r"patch_embed\.norm\.(.+)", "encoder.0.embed.after.{0}"),
    (r"layers\.(\d)\.blocks\.(.+)", "encoder.{0}.blocks.{1}"),
    # The norm after the last stage; dense prediction has one for each stage.
    (r"norm\.(.+)", "decoder.unify.3.0.norm.{0}"),
    (r"norm(\d)\.(.+)", "decoder.unify.{0}.0.norm.{1}"),
)
OFFICIAL_NAMES = {
    # Published stages end, not begin, with an embedding.
    "swin": (*_SWIN, (r"layers\.(\d)\.downsample\.(.+)", "encoder.{0+1}.embed.{1}")),
    "focal": (
        *_SWIN,
        (r"layers\.(\d)\.downsample\.proj\.(.+)", "encoder.{0+1}.embed.proj.{1}"),
        (r"layers\.(\d)\.downsample\.norm\.(.+)", "encoder.{0+1}.embed.after.{1}"),
    ),
    "pvt_v2": (
        (r"patch_embed(\d)\.proj\.(.+)", "encoder.{0-1}.embed.proj.{1}"),
        (r"patch_embed(\d)\.norm\.(.+)", "encoder.{0-1}.embed.after.{1}"),
        (r"block(\d)\.(.+)", "encoder.{0-1}.blocks.{1}"),
        (r"norm(\d)\.(.+)", "encoder.{0-1}.norm.{1}"),
    ),
    "davit": (
        (r"patch_embeds\.(\d)\.proj\.(.+)", "encoder.{0}.embed.proj.{1}"),
        (r"patch_embeds\.0\.norm\.(.+)", "encoder.0.embed.after.{0}"),
        (r"patch_embeds\.(\d)\.norm\.(.+)", "encoder.{0}.embed.before.norm.{1}"),
        (r"main_blocks\.(\d)\.(.+)", "encoder.{0}.blocks.{1}"),
        (r"norms\.(.+)", "decoder.unify.3.0.norm.{0}"),
        (r"norm(\d)\.(.+)", "decoder.unify.{0}.0.norm.{1}"),
    ),
}
# Names within a block; those of focal modulation stand under `modulation`.
OFFICIAL_PARTS = (
    (r"\.attn\.([qkv])\.", r".attn.project.\1.linear."),
    (r"\.attn\.proj\.", ".attn.out."),
    (r"\.attn\.relative_position_bias_table", ".attn.mix.bias.table"),
    (r"\.attn\.sr\.", ".attn.gather.conv."),
    (r"\.attn\.norm\.", ".attn.gather.norm."),
    (r"\.modulation\.f\.", ".attn.project."),
    (r"\.modulation\.h\.", ".attn.modulate."),
    (r"\.modulation\.proj\.", ".attn.out."),
    (r"\.modulation\.focal_layers\.(\d)\.0\.", r".attn.contexts.\1."),
    (r"\.modulation\.ln\.", ".attn.norm."),
    (r"\.dwconv\.dwconv\.", ".near.conv."),
    (r"\.cpe\.0\.proj\.", ".position1.conv."),
    (r"\.cpe\.1\.proj\.", ".position2.conv."),
)
