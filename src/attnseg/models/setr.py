"""SETR: a plain Vision Transformer with a naive, PUP or MLA head.

Zheng et al., 2021, arXiv 2012.15840. Details that the paper leaves open follow the published code:
the class token stays in the sequence (naive, PUP), there is no norm after the encoder but one in
each head, and MLA's streams are upsampled with aligned corners.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from attnseg.layers.conv import conv_bn_relu, resize, upsample
from attnseg.layers.encoder import ReductionFactory, make_reduction, run_blocks
from attnseg.layers.tokens import AttentionFactory, Place
from attnseg.layers.vit import Block, PatchTokens, init_weights, tokens_to_map
from attnseg.models.model import (
    DEAD,
    VIT_NAMES,
    SegmentationModel,
    check_choice,
    check_divisible,
    check_positive,
    translate_name,
)

NORM_EPS = 1e-6
MLA_LEVELS = 4


@dataclass(frozen=True)
class SETRSize:
    """Dimensions of a named size: encoder width, depth and heads, patch, head channels."""

    dim: int
    depth: int
    num_heads: int
    patch_size: int
    head_channels: int
    auxiliary: tuple[int, ...]  # Blocks (from 0) whose output the auxiliary heads take.


SIZES = {
    "tiny": SETRSize(192, 4, 3, 8, 64, (1,)),  # Ours, for tests and laptops.
    "base": SETRSize(768, 12, 12, 16, 256, (2, 5, 8)),  # T-Base
    "large": SETRSize(1024, 24, 16, 16, 256, (9, 14, 19)),  # T-Large
}


class NaiveHead(nn.Module):
    """Norm, 1x1 convolution, 1x1 classifier, and one bilinear resize."""

    def __init__(self, dim: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.conv = conv_bn_relu(dim, channels, 1, bias=True)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Map tokens `[B, N, C]` to logits `[B, K, *size]`."""
        logits: Tensor = self.classify(self.conv(tokens_to_map(self.norm(tokens), grid)))
        return resize(logits, size)


class PUPHead(nn.Module):
    """Progressive upsampling: a doubling after each convolution, up to the image's size."""

    def __init__(self, dim: int, channels: int, num_classes: int, patch_size: int) -> None:
        super().__init__()
        doublings = patch_size.bit_length() - 1
        if patch_size != 2**doublings or doublings < 1:
            raise ValueError(
                f"patch_size {patch_size} is not a power of two, which the PUP head's doublings "
                "need; use head=naive"
            )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        widths = [dim] + [channels] * doublings
        self.convs = nn.ModuleList(conv_bn_relu(a, b, 3, bias=True) for a, b in pairwise(widths))
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Map tokens `[B, N, C]` to logits `[B, K, *size]`."""
        x = tokens_to_map(self.norm(tokens), grid)
        for i, conv in enumerate(self.convs):
            x = conv(x if i == 0 else upsample(x, 2))
        return upsample(self.classify(x), 2)


class MLAHead(nn.Module):
    """Multi-level aggregation: four depths of the encoder, summed top-down, then concatenated."""

    def __init__(self, dim: int, channels: int, num_classes: int) -> None:
        super().__init__()
        levels = range(MLA_LEVELS)
        stream = channels // 2
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPS) for _ in levels)
        self.reduce = nn.ModuleList(conv_bn_relu(dim, channels, 1, bias=False) for _ in levels)
        self.fuse = nn.ModuleList(conv_bn_relu(channels, channels, 3, bias=False) for _ in levels)
        self.streams = nn.ModuleList(
            nn.Sequential(
                conv_bn_relu(channels, stream, 3, bias=False),
                conv_bn_relu(stream, stream, 3, bias=False),
            )
            for _ in levels
        )
        self.classify = nn.Conv2d(MLA_LEVELS * stream, num_classes, 3, padding=1)

    def forward(
        self, levels: list[Tensor], grid: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Map the tokens `[B, N, C]` of four depths, shallow to deep, to logits `[B, K, *size]`.

        The fused map `[B, channels, *grid]` of each level is returned as well.
        """
        maps = [
            reduce(tokens_to_map(norm(tokens), grid))
            for norm, reduce, tokens in zip(self.norms, self.reduce, levels, strict=True)
        ]
        for i in reversed(range(MLA_LEVELS - 1)):
            maps[i] = maps[i] + maps[i + 1]
        fused = [fuse(x) for fuse, x in zip(self.fuse, maps, strict=True)]
        streams = [
            upsample(stream(x), 4, align_corners=True)
            for stream, x in zip(self.streams, fused, strict=True)
        ]
        return resize(self.classify(torch.cat(streams, 1)), size), fused


class SETR(SegmentationModel):
    """SETR with a chosen head and attention.

    Args:
        in_channels: channels of the image.
        num_classes: K, channels of the logits.
        image_size: height and width that the positions are learned for.
        attn: builds the attention of every block.
        size: `tiny`, `base` or `large`; the arguments below override its numbers.
        head: `naive`, `pup` or `mla`.
        auxiliary: whether further heads classify the middle of the encoder while training.
        dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads.
        patch_size: side of a patch, pixels.
        head_channels: channels of the head's convolutions.
        mlp_ratio: hidden width of the MLPs, as a multiple of the tokens' width.
        class_token: whether the naive and PUP heads' encoders have a class token, as published;
            every token reaches every other one through it, even if attention is local.
        tokens: builds what reduces the tokens between blocks.

    Raises:
        ValueError: an unknown size or head, or numbers that do not fit each other.
    """

    unused_names: ClassVar = ((r"decode_head\.conv_seg\..+", DEAD),)

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        attn: AttentionFactory,
        size: str = "base",
        head: str = "pup",
        auxiliary: bool = True,
        dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        patch_size: int | None = None,
        head_channels: int | None = None,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        tokens: ReductionFactory | None = None,
    ) -> None:
        super().__init__()
        check_choice("size", size, SIZES)
        check_choice("head", head, ("naive", "pup", "mla"))
        check_positive(
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
            head_channels=head_channels,
        )
        preset = SIZES[size]
        dim = dim or preset.dim
        depth = depth or preset.depth
        channels = head_channels or preset.head_channels
        self.patch_size = patch_size or preset.patch_size
        check_divisible("image_size", image_size, self.patch_size)
        if head == "mla" and (depth < MLA_LEVELS or channels % 2):
            raise ValueError(
                f"head=mla needs a depth of at least {MLA_LEVELS} and an even number of "
                f"head_channels, got {depth} and {channels}"
            )
        grid = (image_size[0] // self.patch_size, image_size[1] // self.patch_size)
        prefixed = class_token and head != "mla"
        self.embed = PatchTokens(in_channels, dim, self.patch_size, grid, prefixed)
        self.encoder = nn.ModuleList(
            Block(
                dim,
                attn(dim, num_heads or preset.num_heads, place=Place(0, i, grid)),
                NORM_EPS,
                mlp_ratio=mlp_ratio,
            )
            for i in range(depth)
        )
        self.encoder.apply(init_weights)
        self.reduction = make_reduction(tokens, dim, self.encoder)
        self.mla_levels = [depth * (i + 1) // MLA_LEVELS - 1 for i in range(MLA_LEVELS)]
        self.auxiliary_levels: list[int] = []
        if auxiliary and head != "mla":
            self.auxiliary_levels = [i for i in preset.auxiliary if i < depth - 1]
        self._add_heads(head, auxiliary, dim, channels, num_classes)

    def _add_heads(
        self, head: str, auxiliary: bool, dim: int, channels: int, num_classes: int
    ) -> None:
        self.head: NaiveHead | PUPHead | MLAHead
        self.auxiliary_heads = nn.ModuleList()
        if head == "mla":
            self.head = MLAHead(dim, channels, num_classes)
            levels = range(MLA_LEVELS if auxiliary else 0)
            self.auxiliary_heads.extend(nn.Conv2d(channels, num_classes, 1) for _ in levels)
            return
        if head == "pup":
            self.head = PUPHead(dim, channels, num_classes, self.patch_size)
        else:
            self.head = NaiveHead(dim, channels, num_classes)
        self.auxiliary_heads.extend(
            NaiveHead(dim, channels, num_classes) for _ in self.auxiliary_levels
        )

    def forward(self, image: Tensor) -> Tensor:
        """Segment images `[B, C, H, W]`; see `SegmentationModel.forward`."""
        return self._outputs(image, auxiliary=False)[0]

    def training_outputs(self, image: Tensor) -> list[Tensor]:
        """Return the head's logits and those of the auxiliary heads."""
        return self._outputs(image, auxiliary=True)

    def _outputs(self, image: Tensor, auxiliary: bool) -> list[Tensor]:
        size = (image.shape[2], image.shape[3])
        check_divisible("image", size, self.patch_size)
        tokens, grid = self.embed(image)
        if isinstance(self.head, MLAHead):
            levels = run_blocks(self.encoder, tokens, grid, self.mla_levels, self.reduction)
            logits, fused = self.head(levels, grid, size)
            if not auxiliary:
                return [logits]
            pairs = zip(self.auxiliary_heads, fused, strict=False)
            return [logits, *(resize(classify(x), size) for classify, x in pairs)]
        wanted = [*(self.auxiliary_levels if auxiliary else []), len(self.encoder) - 1]
        *middle, last = run_blocks(self.encoder, tokens, grid, wanted, self.reduction)
        heads = zip(self.auxiliary_heads, middle, strict=False)  # There is none in evaluation.
        return [self.head(last, grid, size), *(head(level, grid, size) for head, level in heads)]

    def official_split(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Split the joint `qkv` projection of a block."""
        if ".attn.qkv." not in name:
            return {name: value}
        parts = zip("qkv", value.chunk(3), strict=True)
        return {name.replace(".qkv.", f".{role}."): part for role, part in parts}

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published checkpoints (`backbone.`, `decode_head.`)."""
        if match := re.fullmatch(r"decode_head\.(conv|syncbn_fc)_(\d)\.(.+)", name):
            kind, index, rest = match.groups()
            if isinstance(self.head, PUPHead) and int(index) < len(self.head.convs):
                return f"head.convs.{index}.{int(kind != 'conv')}.{rest}"
            part = f"conv.{int(kind != 'conv')}" if index == "0" else "classify"
            return f"head.{part}.{rest}"
        return translate_name(name, OFFICIAL_NAMES)


# The published code numbers MLA's streams 2 to 5; its `conv_seg` comes from a base class and is
# never used.
OFFICIAL_NAMES = (
    *VIT_NAMES,
    (r"backbone\.(cls_token|pos_embed)", "embed.{0}"),
    (r"backbone\.patch_embed\.(proj\..+)", "embed.{0}"),
    (r"backbone\.blocks\.(\d+)\.attn\.([qkv])\.(.+)", "encoder.{0}.attn.project.{1}.linear.{2}"),
    (r"backbone\.blocks\.(\d+)\.attn\.proj\.(.+)", "encoder.{0}.attn.out.{1}"),
    (r"backbone\.blocks\.(\d+)\.((?:norm|mlp).+)", "encoder.{0}.{1}"),
    (r"decode_head\.norm\.(.+)", "head.norm.{0}"),
    (r"backbone\.norm_(\d)\.(.+)", "head.norms.{0}.{1}"),
    (r"backbone\.mla\.mla_p(\d)_1x1\.(.+)", "head.reduce.{0-2}.{1}"),
    (r"backbone\.mla\.mla_p(\d)\.(.+)", "head.fuse.{0-2}.{1}"),
    (r"decode_head\.mlahead\.head(\d)\.([01])\.(.+)", "head.streams.{0-2}.0.{1}.{2}"),
    (r"decode_head\.mlahead\.head(\d)\.3\.(.+)", "head.streams.{0-2}.1.0.{1}"),
    (r"decode_head\.mlahead\.head(\d)\.4\.(.+)", "head.streams.{0-2}.1.1.{1}"),
    (r"decode_head\.cls\.(.+)", "head.classify.{0}"),
)
