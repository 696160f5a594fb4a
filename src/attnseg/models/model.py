"""What every segmentation model is: image in, logits of the image's size out."""

import re
from collections.abc import Iterable

from torch import Tensor, nn

_LAYER = r"transformer\.encoder\.layer\.(\d+)\."
# A plain ViT: names in TransUNet's code, which Flax files are brought to, and the names here of
# models that call their tokens `embed` and their blocks `encoder`.
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


def translate(name: str, table: Iterable[tuple[str, str]]) -> str | None:
    """Translate a name by the first pattern of a table that matches all of it.

    Args:
        name: published name.
        table: regular expressions, and our names with `{0}` for the first group and so on. `{0-1}`
            is the first group less 1, where the published code counts from there.

    Returns:
        Our name, or `None` if no pattern matches.
    """
    for pattern, ours in table:
        if match := re.fullmatch(pattern, name):
            return re.sub(
                r"\{(\d)(?:-(\d))?\}",
                lambda place: _group(match, place),
                ours,
            )
    return None


def _group(match: re.Match[str], place: re.Match[str]) -> str:
    text = match.groups()[int(place[1])]
    return str(int(text) - int(place[2])) if place[2] else text


class PublishedModule(nn.Module):
    """A network that knows the names its parameters have in the published implementation."""

    def official_name(self, name: str) -> str | None:
        """Translate a parameter name of the published implementation to ours.

        Returns:
            Our name; `None` if the published parameter has no function in this model.
        """
        raise NotImplementedError(f"{type(self).__name__} has no published checkpoints")

    def official_split(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Split a published tensor that holds several of ours; by default it holds one."""
        return {name: value}

    def position_grids(self) -> dict[str, tuple[int, int]]:
        """Return the grid (height, width) that each learned position table is for, by our name."""
        return {}


class SegmentationModel(PublishedModule):
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


def check_positive(**numbers: int | None) -> None:
    """Refuse numbers below 1; `None` stands for a number that is not given.

    Raises:
        ValueError: names the first.
    """
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} {number} must be 1 or more")


def check_divisible(what: str, size: tuple[int, int], factor: int) -> None:
    """Refuse an image size that is not a multiple of `factor` pixels in height and width.

    Raises:
        ValueError: names the nearest valid size.
    """
    if any(side < factor or side % factor for side in size):
        near = [max(factor, round(side / factor) * factor) for side in size]
        raise ValueError(
            f"{what} {size[0]}x{size[1]} is not divisible by {factor}; nearest: {near[0]}x{near[1]}"
        )
