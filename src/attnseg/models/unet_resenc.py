"""U-Net with a residual encoder, as nnU-Net plans it.

Isensee et al., 2024, arXiv 2404.09556 (nnU-Net Revisited; its presets M, L and XL differ in image
and batch size). Blocks are those of He et al., 2015, arXiv 1512.03385, with ResNet-D's pooling in
the shortcut (arXiv 1812.01187); plan and decoder are those of the plain U-Net.
"""

import re
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.models.unet import SLOPE, StagePlan, UNet, UNetSize, conv_norm, conv_norm_act


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut: the input, pooled and projected where shapes differ."""

    def __init__(self, in_channels: int, channels: int, plan: StagePlan) -> None:
        super().__init__()
        self.conv1 = conv_norm_act(in_channels, channels, plan.kernel, plan.stride)
        self.conv2 = conv_norm(channels, channels, plan.kernel)
        self.pool: nn.Module = nn.Identity()
        if plan.stride != (1, 1):
            self.pool = nn.AvgPool2d(plan.stride, plan.stride, ceil_mode=True)
        self.project: nn.Module = nn.Identity()
        if in_channels != channels:
            self.project = conv_norm(in_channels, channels, (1, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, channels, h, w]`."""
        return F.leaky_relu(self.conv2(self.conv1(x)) + self.project(self.pool(x)), SLOPE)


class UNetResEnc(UNet):
    """The residual-encoder U-Net of nnU-Net, without attention; arguments as in `UNet`."""

    SIZES: ClassVar = {
        "tiny": UNetSize(8, 64, (1,)),  # Ours, for tests and laptops.
        "base": UNetSize(32, 512, (1, 3, 4, 6)),
    }
    DECODER_CONVS: ClassVar = 1

    def _make_stage(
        self, number: int, channels: tuple[int, int], plan: StagePlan, count: int
    ) -> nn.Sequential:
        """Build a stage of residual blocks; before the first one, a convolution widens the image.

        Blocks begin as their shortcut: the last norm's weight is zero, as published.
        """
        first, width = channels
        stem = [conv_norm_act(first, width, plan.kernel)] if number == 0 else []
        blocks = [ResidualBlock(width if stem else first, width, plan)]
        plan = plan._replace(stride=(1, 1))
        blocks += [ResidualBlock(width, width, plan) for _ in range(count - 1)]
        for block in blocks:
            nn.init.zeros_(block.conv2[1].get_parameter("weight"))
        return nn.Sequential(*stem, *blocks)

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published code's state dict."""
        name = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
        if not name.startswith("encoder."):
            return super().official_name(name)
        for published, ours in OFFICIAL_PARTS:
            name = re.sub(published, ours, name)
        return name


OFFICIAL_PARTS = (
    (r"\.(conv|all_modules\.0)\.(?=weight|bias)", ".0."),
    (r"\.(norm|all_modules\.1)\.(?=weight|bias)", ".1."),
    (r"\.skip\.\d\.", ".project."),  # The pooling, where there is one, is its first part.
    (r"encoder\.stages\.0\.blocks\.(\d+)", lambda block: f"encoder.0.{int(block[1]) + 1}"),
    (r"encoder\.stages\.(\d+)\.blocks\.", r"encoder.\1."),
    (r"encoder\.stem\.convs\.0\.", "encoder.0.0."),
)
