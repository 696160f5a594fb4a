"""U-Net as nnU-Net plans it: stages, widths and kernels follow from the image's size and spacing.

Ronneberger et al., 2015, arXiv 1505.04597; Isensee et al., 2018, arXiv 1809.10486 (nnU-Net).
Details that the papers leave open follow the published code. The plan is that of its configuration
`2d`, but for image and batch size, which the dataset decides here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from attnseg.layers.conv import resize
from attnseg.models.model import SegmentationModel, check_choice, check_positive, translate_name

SLOPE = 0.01  # of the leaky ReLU
SMALLEST_SIDE = 4  # Places along an axis below which nothing is halved.


class StagePlan(NamedTuple):
    """One level of resolution: its first convolution's stride, and the kernel of all of them.

    Both are given along rows and along columns.
    """

    stride: tuple[int, int]
    kernel: tuple[int, int]


def plan_stages(image_size: tuple[int, int], spacing: tuple[float, float]) -> list[StagePlan]:
    """Plan the stages of a U-Net from its finest to its coarsest one, as nnU-Net does.

    An axis is halved while it has at least 8 places, and while its spacing is less than twice that
    of the finest axis that can be halved. The last axis left needs 12 places. Kernels have a side
    of 1 along an axis until its spacing is less than twice the finest; those of the coarsest stage
    are 3 x 3.

    Args:
        image_size: height and width, pixels.
        spacing: distance of rows and of columns, in any unit.
    """
    sides, spacings = list(image_size), list(spacing)
    stages: list[StagePlan] = []
    stride, kernel = (1, 1), (1, 1)
    while True:
        divisible = [axis for axis in (0, 1) if sides[axis] >= 2 * SMALLEST_SIDE]
        finest = min((spacings[axis] for axis in divisible), default=0.0)
        halved = [axis for axis in divisible if spacings[axis] < 2 * finest]
        if not halved or (len(halved) == 1 and sides[halved[0]] < 3 * SMALLEST_SIDE):
            return [*stages, StagePlan(stride, (3, 3))]
        near = [each < 2 * min(spacings) for each in spacings]
        kernel = (3 if near[0] else kernel[0], 3 if near[1] else kernel[1])
        stages.append(StagePlan(stride, kernel))
        stride = (2 if 0 in halved else 1, 2 if 1 in halved else 1)
        for axis in halved:
            sides[axis], spacings[axis] = -(-sides[axis] // 2), 2 * spacings[axis]


@dataclass(frozen=True)
class UNetSize:
    """Dimensions of a named size.

    Attributes:
        width: channels of the first stage, doubled from stage to stage.
        widest: most channels of a stage.
        blocks: convolutions or residual blocks of each stage; the last number holds for all
            further stages.
    """

    width: int
    widest: int
    blocks: tuple[int, ...]


def conv_norm(
    in_channels: int,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    bias: bool = True,
) -> nn.Sequential:
    """Build a convolution, which alone changes height and width, and an instance normalisation."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=bias),
        nn.InstanceNorm2d(channels, eps=1e-5, affine=True),
    )


def conv_norm_act(
    in_channels: int, channels: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
) -> nn.Sequential:
    """Build a convolution, an instance normalisation and a leaky ReLU."""
    layers = conv_norm(in_channels, channels, kernel, stride)
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE, inplace=True))


class UNetDecoderStage(nn.Module):
    """Enlarges a map by a transposed convolution, joins the skip connection, and convolves."""

    def __init__(
        self, in_channels: int, channels: int, coarse: StagePlan, convs: nn.Module
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, coarse.stride, coarse.stride)
        self.convs = convs

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map `[B, C, h, w]` and a finer skip `[B, D, H, W]` to `[B, D, H, W]`."""
        x = self.up(x)
        if x.shape != skip.shape:  # Halving an odd side rounded up.
            x = x[:, :, : skip.shape[2], : skip.shape[3]]
        out: Tensor = self.convs(torch.cat((x, skip), 1))
        return out


class UNet(SegmentationModel):
    """The plain U-Net of nnU-Net, without attention; images of nearly any size.

    While training, coarser stages of the decoder are classified as well, except for the coarsest
    (deep supervision). Published, they are compared with masks of their own size; here their logits
    are resized to the masks. Classifiers start as everywhere else here, and published by He et al.

    Args:
        in_channels: channels of the image.
        num_classes: K, channels of the logits.
        image_size: height and width that the stages are planned for.
        size: `tiny` or `base`; the arguments below override its numbers.
        features: channels of each stage, at most as many as are planned; `None` for all stages.
        blocks: convolutions or residual blocks of each stage of the encoder.
        spacing: distance of rows and of columns, in any unit.
        deep_supervision: whether coarser stages are classified while training.

    Raises:
        ValueError: an unknown size, or numbers that do not fit each other.
    """

    SIZES: ClassVar = {
        "tiny": UNetSize(8, 64, (2,)),  # Ours, for tests and laptops.
        "base": UNetSize(32, 512, (2,)),
    }
    DECODER_CONVS: ClassVar = 2
    auxiliary_fades = True

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        size: str = "base",
        features: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
        spacing: tuple[float, float] = (1.0, 1.0),
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        check_choice("size", size, self.SIZES)
        if min(spacing) <= 0:
            raise ValueError(f"spacing {list(spacing)} must be positive")
        preset, plans = self.SIZES[size], plan_stages(image_size, spacing)
        widths = [min(preset.width * 2**n, preset.widest) for n in range(len(plans))]
        widths = widths if features is None else list(features)
        counts = list(preset.blocks if blocks is None else blocks)
        check_positive(features=min(widths, default=0), blocks=min(counts, default=0))
        if not 2 <= len(widths) <= len(plans):
            raise ValueError(
                f"{len(widths)} stages do not fit images of {image_size[0]}x{image_size[1]}, which "
                f"allow {len(plans)}; use 2 or more and no more than that, or larger images"
            )
        plans = [*plans[: len(widths) - 1], plans[len(widths) - 1]._replace(kernel=(3, 3))]
        counts += counts[-1:] * len(plans)
        self.factor = tuple(2 ** sum(plan.stride[axis] == 2 for plan in plans) for axis in (0, 1))
        self.encoder = nn.ModuleList(
            self._make_stage(number, pair, plan, count)
            for number, (pair, plan, count) in enumerate(
                zip(pairwise([in_channels, *widths]), plans, counts, strict=False)
            )
        )
        self.decoder = nn.ModuleList(
            UNetDecoderStage(coarse, fine, plans[number + 1], self._make_convs(fine, plans[number]))
            for number, (fine, coarse) in reversed(list(enumerate(pairwise(widths))))
        )
        self.classify = nn.Conv2d(widths[0], num_classes, 1)
        # The coarsest one has no weight in the published loss.
        supervised = widths[1:-2] if deep_supervision else []
        self.auxiliary_classify = nn.ModuleList(nn.Conv2d(w, num_classes, 1) for w in supervised)
        self.encoder.apply(init_convolutions)
        self.decoder.apply(init_convolutions)

    def _make_stage(
        self, number: int, channels: tuple[int, int], plan: StagePlan, count: int
    ) -> nn.Sequential:
        """Build a stage of the encoder from its channels in and out: here, convolutions."""
        first, width = channels
        convs = [conv_norm_act(first, width, plan.kernel, plan.stride)]
        convs += [conv_norm_act(width, width, plan.kernel) for _ in range(count - 1)]
        return nn.Sequential(*convs)

    def _make_convs(self, width: int, plan: StagePlan) -> nn.Sequential:
        """Build the convolutions of a stage of the decoder."""
        inputs = [2 * width] + [width] * (self.DECODER_CONVS - 1)
        return nn.Sequential(*(conv_norm_act(each, width, plan.kernel) for each in inputs))

    def forward(self, image: Tensor) -> Tensor:
        """Segment images `[B, C, H, W]`; see `SegmentationModel.forward`."""
        logits: Tensor = self.classify(self._decode(image)[0])
        return logits

    def training_outputs(self, image: Tensor) -> list[Tensor]:
        """Return the logits, and those of ever coarser stages."""
        finest, *coarser = self._decode(image)
        size = (image.shape[2], image.shape[3])
        pairs = zip(self.auxiliary_classify, coarser, strict=False)
        return [self.classify(finest), *(resize(classify(x), size) for classify, x in pairs)]

    def _decode(self, image: Tensor) -> list[Tensor]:
        """Return the maps of the decoder, `[B, C, h, w]`, from the finest to the coarsest."""
        height, width = image.shape[2:]
        if height <= self.factor[0] and width <= self.factor[1]:
            raise ValueError(
                f"image {height}x{width} leaves a single place in the coarsest stage; nearest: "
                f"[{height},{self.factor[1] + 1}]"
            )
        x, skips, maps = image, [], []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        for stage in self.decoder:
            x = stage(x, skips.pop())
            maps.append(x)
        return maps[::-1]

    def official_name(self, name: str) -> str | None:
        """Translate a name of the published code's state dict."""
        # Tensors have further names there: those of the encoder within the decoder, and by number.
        name = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
        name = name.replace(".all_modules.0.", ".conv.").replace(".all_modules.1.", ".norm.")
        head, _, rest = name.removeprefix("decoder.seg_layers.").partition(".")
        if not head.isdigit():
            return translate_name(name, OFFICIAL_NAMES)
        coarser = len(self.decoder) - 1 - int(head)  # Published heads start at the coarsest.
        return f"auxiliary_classify.{coarser - 1}.{rest}" if coarser else f"classify.{rest}"


def init_convolutions(module: nn.Module) -> None:
    """Initialise convolutions as nnU-Net does: by He et al., 2015, arXiv 1502.01852; zero bias."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


OFFICIAL_NAMES = (
    (r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.conv\.(.+)", "encoder.{0}.{1}.0.{2}"),
    (r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.norm\.(.+)", "encoder.{0}.{1}.1.{2}"),
    (r"decoder\.stages\.(\d+)\.convs\.(\d+)\.conv\.(.+)", "decoder.{0}.convs.{1}.0.{2}"),
    (r"decoder\.stages\.(\d+)\.convs\.(\d+)\.norm\.(.+)", "decoder.{0}.convs.{1}.1.{2}"),
    (r"decoder\.transpconvs\.(\d+)\.(.+)", "decoder.{0}.up.{1}"),
)
