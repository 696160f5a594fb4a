"""ResNetV2 of TransUNet: weight-standardised convolutions and group normalisation.

Kolesnikov et al., 2020, arXiv 1912.11370 (BiT). Units are post-activation, as in TransUNet's code.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.narrow import GroupNorm

GROUPS = 32


class StdConv2d(nn.Conv2d):
    """Convolution without bias whose kernels have mean 0 and (biased) variance 1.

    Layer normalisation standardises all kernels in one pass over the weights.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[B, C, H, W]`."""
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-5)
        return F.conv2d(x, weight, None, self.stride, self.padding)


class Unit(nn.Module):
    """Bottleneck of 1x1, 3x3 (strided) and 1x1 convolutions.

    The shortcut is a projection where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        mid = out_channels // 4
        self.conv1 = StdConv2d(in_channels, mid, 1)
        self.gn1 = GroupNorm(GROUPS, mid, eps=1e-6)
        self.conv2 = StdConv2d(mid, mid, 3, stride)
        self.gn2 = GroupNorm(GROUPS, mid, eps=1e-6)
        self.conv3 = StdConv2d(mid, out_channels, 1)
        self.gn3 = GroupNorm(GROUPS, out_channels, eps=1e-6)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(StdConv2d(in_channels, out_channels, 1, stride))
            # One group per channel and an epsilon of its own, as published.
            self.shortcut.append(GroupNorm(out_channels, out_channels, eps=1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, out_channels, H / stride, W / stride]`."""
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        return F.relu(self.shortcut(x) + self.gn3(self.conv3(y)))


class ResNetV2(nn.Module):
    """Root and three stages, down to 1/16 of the image's size, with features for skip connections.

    Args:
        in_channels: channels of the image.
        width: channels of the root; the stages have 4, 8 and 16 times as many.
        units: number of units in each of the three stages.
    """

    def __init__(self, in_channels: int, width: int, units: tuple[int, int, int]) -> None:
        super().__init__()
        self.root = nn.Sequential(
            StdConv2d(in_channels, width, 7, 2), GroupNorm(GROUPS, width, eps=1e-6), nn.ReLU()
        )
        # Without padding, 112 pixels become 55; the skips are padded back to 56.
        self.pool = nn.MaxPool2d(3, 2)
        self.stages = nn.ModuleList()
        channels = width
        for i, count in enumerate(units):
            out = width * 4 * 2**i
            first = Unit(channels, out, 1 if i == 0 else 2)
            self.stages.append(nn.Sequential(first, *(Unit(out, out, 1) for _ in range(count - 1))))
            channels = out

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Extract features of `[B, C, H, W]`, height and width multiples of 16.

        Returns:
            Features at 1/16, and those at 1/8, 1/4 and 1/2 of the image's size.
        """
        x = self.root(image)
        skips = [x]
        x = self.pool(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            height, width = image.shape[2] >> (i + 2), image.shape[3] >> (i + 2)
            skips.append(F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])))
        return x, skips[-2::-1]
