"""CvT as segmentation encoder: a pyramid of convolutional tokens with convolutional projections.

Wu et al., 2021, arXiv 2103.15808. Details that the paper leaves open follow the published code. CvT
has no published decoder for segmentation: those here come from the literature on other encoders.
They normalise the stage maps first, which CvT itself never does.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.conv import resize
from attnseg.layers.map_decoders import DECODERS
from attnseg.layers.narrow import LayerNorm
from attnseg.layers.tokens import AttentionFactory, Grid, Place
from attnseg.layers.vit import Block, QuickGELU, init_weights, tokens_to_map
from attnseg.models.model import (
    OF_CLASSIFIER,
    PublishedModule,
    SegmentationModel,
    check_choice,
    check_positive,
    translate_name,
)

NORM_EPS = 1e-5
KERNELS, STRIDES, PADDINGS = (7, 3, 3), (4, 2, 2), (2, 1, 1)  # Of the three token embeddings.
SMALLEST = 16  # Pixels; a smaller image leaves no token in the last stage.


@dataclass(frozen=True)
class CvTSize:
    """Dimensions of a named size, per stage."""

    dims: tuple[int, int, int]
    num_heads: tuple[int, int, int]
    depths: tuple[int, int, int]
    drop_path: float  # Rate of the last stage's last block.


SIZES = {
    "tiny": CvTSize((32, 64, 96), (1, 2, 3), (1, 1, 2), 0.0),  # Ours, for tests and laptops.
    "cvt-13": CvTSize((64, 192, 384), (1, 3, 6), (1, 2, 10), 0.1),
    "cvt-21": CvTSize((64, 192, 384), (1, 3, 6), (1, 4, 16), 0.1),
}


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise 3x3 convolution without bias; each call chooses its stride."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """Convolve `[B, C, H, W]`."""
        return F.conv2d(x, self.weight, None, stride, self.padding, self.dilation, self.groups)


class ConvProjection(nn.Module):
    """Depthwise 3x3 convolution on the grid, batch normalisation, then a linear projection.

    Prefix tokens have no place on the grid and skip the convolution.

    Args:
        dim: C, width of the tokens in and out.
        bias: whether the linear projection has a bias.
        stride: stride of the convolution in calls with `strided`.
    """

    def __init__(self, dim: int, bias: bool, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = DepthwiseConv2d(dim)
        self.norm = nn.BatchNorm2d(dim)
        self.linear = nn.Linear(dim, dim, bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int], strided: bool) -> Tensor:
        """Project tokens `[B, N, C]` on a grid (h, w); `strided` asks for fewer tokens."""
        places = grid[0] * grid[1]
        prefix = None
        if tokens.shape[1] > places:
            prefix, tokens = tokens.split((tokens.shape[1] - places, places), 1)
        convolved = self.conv(tokens_to_map(tokens, grid), self.stride if strided else 1)
        mixed = self.norm(convolved).flatten(2).transpose(1, 2)
        if prefix is not None:
            mixed = torch.cat((prefix, mixed), 1)
        projected: Tensor = self.linear(mixed)
        return projected

    def thinned(self, projected: Tensor, grid: tuple[int, int]) -> Tensor:
        """Select the tokens `[B, M, C]` of a strided projection from an unstrided one, `[B, N, C]`.

        They are the prefix and every stride-th place of both axes of the grid (h, w).
        """
        places = grid[0] * grid[1]
        prefix, tokens = projected.split((projected.shape[1] - places, places), 1)
        kept = tokens.unflatten(1, grid)[:, :: self.stride, :: self.stride].flatten(1, 2)
        return torch.cat((prefix, kept), 1)

    def macs(self, tokens: int, grid: tuple[int, int], strided: bool) -> tuple[int, int]:
        """Return the multiply-accumulates for one item, and how many tokens come out."""
        stride, dim = self.stride if strided else 1, self.linear.in_features
        places = -(-grid[0] // stride) * -(-grid[1] // stride)
        out = tokens - grid[0] * grid[1] + places
        return 9 * dim * places + out * dim * dim, out


class Stage(nn.Module):
    """Convolutional token embedding, then blocks; the last stage prepends a class token."""

    def __init__(
        self,
        index: int,
        in_channels: int,
        size: CvTSize,
        attn: AttentionFactory,
        stride_kv: int,
        mlp_ratio: float,
        grid: Grid,
    ) -> None:
        super().__init__()
        dim, depth = size.dims[index], size.depths[index]
        last = index == 2
        self.proj = nn.Conv2d(in_channels, dim, KERNELS[index], STRIDES[index], PADDINGS[index])
        self.norm = LayerNorm(dim, eps=NORM_EPS)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if last else None
        rates = [size.drop_path * i / max(depth - 1, 1) if last else 0.0 for i in range(depth)]
        first = sum(size.depths[:index])  # Number of the stage's first block in the encoder.
        # As published, the scale is that of the full width, not of a head's.
        make = functools.partial(
            attn,
            dim,
            size.num_heads[index],
            scale=dim**-0.5,
            projection=functools.partial(ConvProjection, stride=stride_kv),
        )
        self.blocks = nn.ModuleList(
            Block(
                dim,
                make(place=Place(index, first + i, grid)),
                NORM_EPS,
                drop_path=rate,
                act=QuickGELU,
                mlp_ratio=mlp_ratio,
            )
            for i, rate in enumerate(rates)
        )
        self.apply(init_weights)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stage's map `[B, dim, h, w]` and its prefix tokens `[B, 0 or 1, dim]`."""
        x = self.proj(x)
        grid = (x.shape[2], x.shape[3])
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), tokens), 1)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens_to_map(tokens, grid), tokens[:, : -grid[0] * grid[1]]


class Encoder(nn.Module):
    """The three stages, at about 1/4, 1/8 and 1/16 of the image's size."""

    def __init__(
        self,
        in_channels: int,
        size: str,
        attn: AttentionFactory,
        stride_kv: int = 2,
        mlp_ratio: float = 4.0,
        image_size: tuple[int, int] = (224, 224),
    ) -> None:
        super().__init__()
        check_choice("size", size, SIZES)
        self.dims = SIZES[size].dims
        inputs, height, width = (in_channels, *self.dims[:2]), *image_size
        stages = []
        for i, stride in enumerate(STRIDES):
            height, width = -(-height // stride), -(-width // stride)
            stage = Stage(i, inputs[i], SIZES[size], attn, stride_kv, mlp_ratio, (height, width))
            stages.append(stage)
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the stage maps `[B, dim, h, w]`, un-normalised, and the class token `[B, 1, C]`.

        Raises:
            ValueError: the image is smaller than 16 pixels.
        """
        if min(image.shape[2:]) < SMALLEST:
            raise ValueError(
                f"image {image.shape[2]}x{image.shape[3]} is smaller than {SMALLEST} pixels; "
                f"nearest: [{max(SMALLEST, image.shape[2])},{max(SMALLEST, image.shape[3])}]"
            )
        maps, x = [], image
        for stage in self.stages:
            x, prefix = stage(x)
            maps.append(x)
        return maps, prefix


class CvT(SegmentationModel):
    """CvT as encoder, with a chosen decoder and attention; images of any size from 16 pixels.

    Args:
        in_channels: channels of the image.
        num_classes: K, channels of the logits.
        image_size: height and width of the images for which an attention may prepare; CvT itself
            has no learned positions.
        attn: builds the attention of every block.
        size: `tiny`, `cvt-13` or `cvt-21`.
        decoder: `mlp`, `mlp_plain` (the same, layer by layer), `fpn` or `u`.
        decoder_channels: width of the decoder.
        stride_kv: stride of the key and value projections.
        mlp_ratio: hidden width of the MLPs, as a multiple of the tokens' width.

    Raises:
        ValueError: an unknown size or decoder.
    """

    unused_names: ClassVar = ((r"(norm|head)\..+", OF_CLASSIFIER),)

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        attn: AttentionFactory,
        size: str = "cvt-13",
        decoder: str = "mlp",
        decoder_channels: int = 256,
        stride_kv: int = 2,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_choice("decoder", decoder, DECODERS)
        check_positive(stride_kv=stride_kv, decoder_channels=decoder_channels)
        self.encoder = Encoder(in_channels, size, attn, stride_kv, mlp_ratio, image_size)
        self.decoder = DECODERS[decoder](self.encoder.dims, decoder_channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Segment images `[B, C, H, W]`; see `SegmentationModel.forward`."""
        maps, _ = self.encoder(image)
        return resize(self.decoder(maps), (image.shape[2], image.shape[3]))

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published classifier; its norm and head are not used here."""
        return translate_name(name, OFFICIAL_NAMES)


class CvTClassifier(PublishedModule):
    """The published image classifier: encoder, norm, and a linear layer on the class token."""

    def __init__(
        self, in_channels: int, num_classes: int, attn: AttentionFactory, size: str = "cvt-13"
    ) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, size, attn)
        self.norm = nn.LayerNorm(self.encoder.dims[-1], eps=NORM_EPS)
        self.head = nn.Linear(self.encoder.dims[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images `[B, C, H, W]`: logits `[B, K]`."""
        _, cls_token = self.encoder(image)
        logits: Tensor = self.head(self.norm(cls_token[:, 0]))
        return logits

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published classifier."""
        if name.startswith(("norm.", "head.")):
            return name
        return translate_name(name, OFFICIAL_NAMES)


BLOCK = r"stage(\d)\.blocks\.(\d+)\."
OURS = "encoder.stages.{0}.blocks.{1}."
OFFICIAL_NAMES = (
    (r"stage(\d)\.patch_embed\.(.+)", "encoder.stages.{0}.{1}"),
    (r"stage(\d)\.(cls_token)", "encoder.stages.{0}.{1}"),
    (BLOCK + r"attn\.conv_proj_([qkv])\.conv\.(.+)", OURS + "attn.project.{2}.conv.{3}"),
    (BLOCK + r"attn\.conv_proj_([qkv])\.bn\.(.+)", OURS + "attn.project.{2}.norm.{3}"),
    (BLOCK + r"attn\.proj_([qkv])\.(.+)", OURS + "attn.project.{2}.linear.{3}"),
    (BLOCK + r"attn\.proj\.(.+)", OURS + "attn.out.{2}"),
    (BLOCK + r"((?:norm|mlp).+)", OURS + "{2}"),
)
