"""Options of benchmarks."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from attnseg.config.nodes import Folder, ImageSize, Node
from attnseg.config.training import Config


class Published(Node):
    """Measurements of a workload's published code; see `configs/workload/dae_former.yaml`.

    Attributes:
        step: GEMM-equivalent GFLOP per image of a float32 training step.
        step_bf16: the same under bf16 autocast.
        work: GFLOP per image that it computes, 6 x counted MACs.
        memory: peak of the float32 step, GiB.
        latency: of one image, ms.
    """

    step: float
    step_bf16: float | None
    work: float
    memory: float
    latency: float


class Checkout(Node):
    """Published code on this machine.

    Attributes:
        folder: from which its modules are imported, as if it were the working directory.
        network: module and callable that makes the network, such as `networks.unet:UNet`. The
            network maps images `[B, C, H, W]` to logits of this height and width, alone or the
            first of several, and is trained on all of them.
        options: arguments of the callable, by name.
    """

    folder: Folder | None
    network: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None
    options: dict[str, Any] | None


class Benchmark(Config):
    """The measured workload and the options of its measurement.

    Attributes:
        image_size: height and width of the made-up images.
        in_channels: their channels.
        num_classes: channels of the logits.
        batch_size: images at a time.
        device: where they are measured.
        outputs: folder with a folder for each suite.
        suite: what is measured.
        against: another attention, measured in alternation.
        checkout: published code, measured in alternation by `suite=checkout`.
        threads: of PyTorch; `None` is its own choice.
    """

    suite: str
    against: str | None
    checkout: Checkout
    image_size: ImageSize
    in_channels: PositiveInt
    num_classes: Annotated[int, Field(ge=2)]
    batch_size: PositiveInt
    repeats: PositiveInt
    precisions: Annotated[list[Literal["float32", "bf16"]], Field(min_length=1)]
    threads: PositiveInt | None
    device: Literal["cpu", "cuda"]
    published: Published | None
    outputs: Folder
