"""What every segmentation model is: image in, logits of the image's size out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


class SegmentationModel(nn.Module):
    """Base of the models.

    A subclass takes `in_channels`, `num_classes`, `image_size` (height, width) and `attn` (an
    `AttentionFactory`) by keyword, then options of its own, and defines `forward`.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Segment images.

        Args:
            image: `[B, C, H, W]`.

        Returns:
            Logits `[B, K, H, W]`, one channel per class.

        Raises:
            ValueError: a height or width the architecture does not allow; the message names the
                nearest that it does.
        """
        raise NotImplementedError

    def training_outputs(self, image: Tensor) -> list[Tensor]:
        """Return the logits and, after them, those of auxiliary heads, all `[B, K, H, W]`."""
        return [self(image)]

    def official_name(self, name: str) -> str | None:
        """Translate a parameter name of the published implementation to ours.

        Returns:
            Our name; `None` if the published parameter has no function in this model.
        """
        raise NotImplementedError(f"{type(self).__name__} has no published checkpoints")

    def official_split(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Split a published tensor that holds several of ours; by default it holds one."""
        return {name: value}


def check_divisible(what: str, size: tuple[int, int], factor: int) -> None:
    """Refuse an image size that is not a multiple of `factor` in height and width.

    Raises:
        ValueError: names the nearest valid size.
    """
    if any(side < factor or side % factor for side in size):
        near = [max(factor, round(side / factor) * factor) for side in size]
        raise ValueError(
            f"{what} {size[0]}x{size[1]} is not divisible by the patch size {factor}; "
            f"nearest: {near[0]}x{near[1]}"
        )


@dataclass
class LoadReport:
    """What became of every tensor when published weights were loaded."""

    loaded: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


def load_official(model: SegmentationModel, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Copy a published implementation's weights into `model`.

    Args:
        model: receives the weights; parameters that the file lacks keep their values.
        state_dict: tensors by the published names.

    Returns:
        Our names that were loaded or left as they were, and published names that were dropped.

    Raises:
        ValueError: a tensor's shape differs from our parameter's.
    """
    report = LoadReport()
    own = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    for published, value in state_dict.items():
        for name, part in model.official_split(published, torch.as_tensor(value)).items():
            target = model.official_name(name)
            if target not in own:
                report.dropped.append(name)
                continue
            if own[target].shape != part.shape:
                raise ValueError(
                    f"{name}: shape {tuple(part.shape)} does not fit {target} "
                    f"{tuple(own[target].shape)}"
                )
            own[target].copy_(part)
            report.loaded.append(target)
    report.fresh = [name for name in own if name not in set(report.loaded)]
    return report
