"""TransUNet: a Vision Transformer on ResNet features, decoded with U-Net's skip connections.

Chen et al., 2021, arXiv 2102.04306. Details that the paper leaves open follow the published code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnseg.layers.conv import conv_bn_relu, upsample
from attnseg.layers.encoder import ReductionFactory, make_reduction, run_blocks
from attnseg.layers.resnetv2 import ResNetV2
from attnseg.layers.tokens import AttentionFactory, Place
from attnseg.layers.vit import Block, PatchTokens, init_weights, tokens_to_map
from attnseg.models.model import (
    VIT_NAMES,
    SegmentationModel,
    check_choice,
    check_divisible,
    translate_name,
)

PATCH = 16  # Pixels of the image per token, with and without the ResNet.
NORM_EPS = 1e-6


@dataclass(frozen=True)
class TransUNetSize:
    """Dimensions of a named size: transformer, ResNet and decoder."""

    dim: int
    depth: int
    num_heads: int
    resnet_width: int
    resnet_units: tuple[int, int, int]
    head_channels: int
    decoder_channels: tuple[int, int, int, int]


SIZES = {
    "tiny": TransUNetSize(192, 2, 3, 32, (1, 1, 1), 128, (64, 32, 16, 16)),  # Ours, for laptops.
    "base": TransUNetSize(768, 12, 12, 64, (3, 4, 9), 512, (256, 128, 64, 16)),  # R50-ViT-B/16
    "large": TransUNetSize(1024, 24, 16, 64, (3, 4, 9), 512, (256, 128, 64, 16)),  # R50-ViT-L/16
}


class UpBlock(nn.Module):
    """Doubles height and width (aligned corners), joins the skip connection, convolves twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(in_channels + skip_channels, out_channels, 3, bias=False)
        self.conv2 = conv_bn_relu(out_channels, out_channels, 3, bias=False)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Map `[B, C, H, W]` and a skip at twice the size to `[B, out_channels, 2 H, 2 W]`."""
        x = upsample(x, 2, align_corners=True)
        if skip is not None:
            x = torch.cat((x, skip), 1)
        out: Tensor = self.conv2(self.conv1(x))
        return out


class TransUNet(SegmentationModel):
    """TransUNet with a chosen attention.

    Args:
        in_channels: channels of the image.
        num_classes: K, channels of the logits.
        image_size: height and width that the positions are learned for.
        attn: builds the attention of every block.
        size: `tiny`, `base` or `large`.
        hybrid: whether tokens come from ResNet features; otherwise from pixels, as in the paper's
            ViT-B/16.
        n_skip: number of skip connections from the ResNet to the decoder, deepest first; 0 to 3.
        dropout: rate for tokens and MLPs while training.
        mlp_ratio: hidden width of the MLPs, as a multiple of the tokens' width.
        tokens: builds what reduces the tokens between blocks.

    Raises:
        ValueError: an unknown size, or numbers that do not fit each other.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        attn: AttentionFactory,
        size: str = "base",
        hybrid: bool = True,
        n_skip: int = 3,
        dropout: float = 0.1,
        mlp_ratio: float = 4.0,
        tokens: ReductionFactory | None = None,
    ) -> None:
        super().__init__()
        check_choice("size", size, SIZES)
        if not 0 <= n_skip <= (3 if hybrid else 0):
            reason = "0 to 3" if hybrid else "0, as there is no ResNet (hybrid=false)"
            raise ValueError(f"n_skip {n_skip} must be {reason}")
        check_divisible("image_size", image_size, PATCH)
        preset, dim = SIZES[size], SIZES[size].dim
        self.n_skip = n_skip
        grid = (image_size[0] // PATCH, image_size[1] // PATCH)
        width = preset.resnet_width
        self.resnet = ResNetV2(in_channels, width, preset.resnet_units) if hybrid else None
        channels, patch = (16 * width, 1) if hybrid else (in_channels, PATCH)
        self.embed = PatchTokens(channels, dim, patch, grid, class_token=False)
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(
            Block(
                dim,
                attn(dim, preset.num_heads, place=Place(0, i, grid)),
                NORM_EPS,
                dropout,
                mlp_ratio=mlp_ratio,
            )
            for i in range(preset.depth)
        )
        self.encoder.apply(init_weights)
        self.reduction = make_reduction(tokens, dim, self.encoder)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.reduce = conv_bn_relu(dim, preset.head_channels, 3, bias=False)
        skips = [8 * width, 4 * width, width, 0]
        widths = (preset.head_channels, *preset.decoder_channels)
        self.decoder = nn.ModuleList(
            UpBlock(widths[i], skips[i] if i < n_skip else 0, widths[i + 1]) for i in range(4)
        )
        self.classify = nn.Conv2d(widths[-1], num_classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Segment images `[B, C, H, W]`; see `SegmentationModel.forward`."""
        check_divisible("image", (image.shape[2], image.shape[3]), PATCH)
        x, skips = self.resnet(image) if self.resnet else (image, [])
        tokens, grid = self.embed(x)
        tokens = self.drop(tokens)
        last = len(self.encoder) - 1
        (tokens,) = run_blocks(self.encoder, tokens, grid, [last], self.reduction)
        x = self.reduce(tokens_to_map(self.norm(tokens), grid))
        for i, block in enumerate(self.decoder):
            x = block(x, skips[i] if i < self.n_skip else None)
        logits: Tensor = self.classify(x)
        return logits

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published code's state dict."""
        return translate_name(name, OFFICIAL_NAMES)


BODY = r"transformer\.embeddings\.hybrid_model\."
UNIT = BODY + r"body\.block(\d)\.unit(\d)\."
OFFICIAL_NAMES = (
    *VIT_NAMES,
    (BODY + r"root\.conv\.(.+)", "resnet.root.0.{0}"),
    (BODY + r"root\.gn\.(.+)", "resnet.root.1.{0}"),
    (UNIT + r"downsample\.(.+)", "resnet.stages.{0-1}.{1-1}.shortcut.0.{2}"),
    (UNIT + r"gn_proj\.(.+)", "resnet.stages.{0-1}.{1-1}.shortcut.1.{2}"),
    (UNIT + r"(.+)", "resnet.stages.{0-1}.{1-1}.{2}"),
    (r"transformer\.encoder\.encoder_norm\.(.+)", "norm.{0}"),
    (r"decoder\.conv_more\.(.+)", "reduce.{0}"),
    (r"decoder\.blocks\.(.+)", "decoder.{0}"),
    (r"segmentation_head\.0\.(.+)", "classify.{0}"),
)
