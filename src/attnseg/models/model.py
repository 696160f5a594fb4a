"""Base class of the segmentation models, and the renaming of published parameters."""

import re
from collections.abc import Collection, Iterable
from typing import ClassVar

from torch import Tensor, nn

DEAD = "no output of the published code depends on it"  # a reason in `unused_names`
OF_CLASSIFIER = "it belongs to the classifier of the published model"  # another

_LAYER = r"transformer\.encoder\.layer\.(\d+)\."
# Names of a plain ViT: those of TransUNet's code, to which Flax files are converted first, and ours
# in models that call their tokens `embed` and their blocks `encoder`.
VIT_NAMES = (
    (r"transformer\.embeddings\.position_embeddings", "embed.pos_embed"),
    (r"transformer\.embeddings\.patch_embeddings\.(.+)", "embed.proj.{0}"),
    (r"transformer\.(cls_token)", "embed.{0}"),
    (_LAYER + r"attn\.(q)uery\.(.+)", "encoder.{0}.attn.project.{1}.linear.{2}"),
    (_LAYER + r"attn\.(k)ey\.(.+)", "encoder.{0}.attn.project.{1}.linear.{2}"),
    (_LAYER + r"attn\.(v)alue\.(.+)", "encoder.{0}.attn.project.{1}.linear.{2}"),
    (_LAYER + r"attn\.out\.(.+)", "encoder.{0}.attn.out.{1}"),
    (_LAYER + r"attention_norm\.(.+)", "encoder.{0}.norm1.{1}"),
    (_LAYER + r"ffn_norm\.(.+)", "encoder.{0}.norm2.{1}"),
    (_LAYER + r"ffn\.(.+)", "encoder.{0}.mlp.{1}"),
)


def translate_name(
    name: str, table: Iterable[tuple[str, str]], parts: Iterable[tuple[str, str]] = ()
) -> str | None:
    """Translate a published name by the first pattern that matches all of it; `None` if none does.

    The table has pairs of a regular expression and our name, in which `{0}` is the first group and
    `{0-1}` the first group minus 1, for published code that counts from 1; likewise `{0+1}`.
    Then all `parts` are replaced within the name, as by `re.sub`.
    """
    for pattern, ours in table:
        if match := re.fullmatch(pattern, name):
            ours = re.sub(r"\{(\d)([-+]\d)?\}", lambda field: _fill_field(match, field), ours)
            for published, part in parts:
                ours = re.sub(published, part, ours)
            return ours
    return None


def _fill_field(match: re.Match[str], field: re.Match[str]) -> str:
    text = match.groups()[int(field[1])]
    return str(int(text) + int(field[2])) if field[2] else text


class PublishedModule(nn.Module):
    """A network that can rename the parameters of its published implementation.

    Attributes:
        unused_names: published names that have no counterpart here on purpose, each as a regular
            expression with the reason.
    """

    unused_names: ClassVar[tuple[tuple[str, str], ...]] = ()

    def official_name(self, name: str) -> str | None:
        """Translate a published parameter name to ours; `None` if the model does not use it."""
        raise NotImplementedError(f"{type(self).__name__} has no published checkpoints")

    def official_split(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Split a published tensor that holds several of ours; by default it is one of ours."""
        return {name: value}

    def explain_unused(self, name: str) -> str:
        """Return the reason why a published tensor is not used."""
        reasons = (reason for names, reason in self.unused_names if re.fullmatch(names, name))
        return next(reasons, "no counterpart in this model")


class SegmentationModel(PublishedModule):
    """Base of the models.

    A subclass takes `in_channels`, `num_classes`, `image_size` (height, width) and `attn` (an
    `AttentionFactory`) by keyword, then options of its own, and defines `forward`.

    Attributes:
        auxiliary_fades: whether the n-th auxiliary output weighs `trainer.auxiliary_weight` to the
            power of n; otherwise all weigh the same.
    """

    auxiliary_fades = False

    def forward(self, image: Tensor) -> Tensor:
        """Segment images.

        Args:
            image: `[B, C, H, W]`.

        Returns:
            Logits `[B, K, H, W]`, one channel per class.

        Raises:
            ValueError: the architecture does not allow this height or width; the message names the
                nearest allowed size.
        """
        raise NotImplementedError

    def training_outputs(self, image: Tensor) -> list[Tensor]:
        """Return the logits, then those of any auxiliary heads, all `[B, K, H, W]`."""
        return [self(image)]


def check_choice(kind: str, name: str, known: Collection[str]) -> None:
    """Refuse an unknown name by a `ValueError` that lists the known ones."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; choose one of {', '.join(known)}")


def check_positive(**numbers: int | None) -> None:
    """Refuse numbers below 1 by a `ValueError`; `None` is a number that was not given."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} {number} must be 1 or more")


def check_divisible(key: str, size: tuple[int, int], factor: int) -> None:
    """Refuse an image size that is no multiple of `factor` by a `ValueError` with the nearest."""
    if any(side < factor or side % factor for side in size):
        near = [max(factor, round(side / factor) * factor) for side in size]
        raise ValueError(
            f"{key} {size[0]}x{size[1]} is not divisible by {factor}; "
            f"nearest: [{near[0]},{near[1]}]"
        )
