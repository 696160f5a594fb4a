"""Everything about a trained run but its weights, as data that a stranger may have written."""

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from attnseg.data.labels import MAX_EXCLUSIVE, MAX_OVERLAPPING, Labels
from attnseg.data.readers.nifti import PLANES
from attnseg.data.slicing import SliceView
from attnseg.errors import CheckpointError

VERSION = 1
MAX_SIDE = 1 << 15
SHA256 = re.compile("[0-9a-f]{64}")
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Recipe:
    """How images become masks.

    Attributes:
        version: of this format.
        run: the run's id.
        model: name of the model.
        attn: name of the attention.
        dataset: name of the dataset.
        classes: foreground classes.
        multilabel: whether they overlap.
        channels: of an image, before slices are stacked.
        size: height and width for the network.
        slices: slices that the network sees at once.
        stride: distance between them.
        window: intensities that become 0 and 1; `None` for the 0.5 and 99.5 percentiles of each
            case and channel.
        volumetric: whether the images are scans; false for pictures.
        plane: of a scan's slices.
        spacing: least and most voxel size of the training scans along slices, rows and columns,
            mm; `None` if unknown.
        profile: name and digest of the metric profile the run was scored with.
        data_digest: SHA-256 of all data.
        split_digest: SHA-256 of the split.
        weights_sha256: SHA-256 of the checkpoint.
    """

    run: str
    model: str
    attn: str
    dataset: str
    classes: tuple[str, ...]
    multilabel: bool
    channels: int
    size: tuple[int, int]
    slices: int
    stride: int
    window: tuple[float, float] | None
    volumetric: bool
    plane: str
    spacing: tuple[Triple, Triple] | None
    profile: tuple[str, str]
    data_digest: str
    split_digest: str
    weights_sha256: str
    version: int = VERSION

    @property
    def view(self) -> SliceView:
        """How slices become the network's input."""
        return SliceView(self.size, self.slices, self.stride)

    @property
    def labels(self) -> Labels:
        """Foreground classes, and whether they overlap."""
        return Labels(self.classes, self.multilabel)

    @property
    def outputs(self) -> int:
        """Channels of the network's logits."""
        return self.labels.channels

    def to_json(self) -> str:
        """Return the recipe as text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str | Path = "recipe.json") -> Self:
        """Read a recipe.

        Args:
            text: from `to_json`.
            place: where it was found, for messages.

        Raises:
            CheckpointError: it is not one; says the first thing that is wrong.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("no object of keys and values")
            if values.get("version") != VERSION:
                raise ValueError(f"version {str(values.get('version'))[:20]}, not {VERSION}")
            names = {field.name for field in fields(cls)}
            if odd := sorted(names ^ values.keys()):
                raise ValueError(f"{odd[0][:40]} is {'missing' if odd[0] in names else 'unknown'}")
            recipe = cls(**{name: _tuples(value) for name, value in values.items()})
            recipe._check()
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{place}: not a recipe of this version ({error}); export the run again"
            ) from error
        return recipe

    def _check(self) -> None:
        for name in ("run", "model", "attn", "dataset"):
            _check(_is_name(getattr(self, name)), name)
        _check(_is_flag(self.multilabel), "multilabel")
        _check(_is_flag(self.volumetric), "volumetric")
        most = MAX_OVERLAPPING if self.multilabel else MAX_EXCLUSIVE
        _check(isinstance(self.classes, tuple) and 1 <= len(self.classes) <= most, "classes")
        _check(all(map(_is_name, self.classes)), "classes")
        _check(len(set(self.classes)) == len(self.classes), "classes")
        for name, limit in (("channels", 64), ("slices", 255), ("stride", 255)):
            _check(_is_whole(getattr(self, name), limit), name)
        _check(self.slices % 2 == 1, "slices")
        _check(isinstance(self.size, tuple) and len(self.size) == 2, "size")
        _check(all(_is_whole(side, MAX_SIDE) for side in self.size), "size")
        _check(self.window is None or _are_numbers(self.window, 2), "window")
        _check(self.window is None or self.window[0] < self.window[1], "window")
        _check(isinstance(self.plane, str) and self.plane in PLANES, "plane")
        spacing = self.spacing
        _check(spacing is None or (isinstance(spacing, tuple) and len(spacing) == 2), "spacing")
        for ends in spacing or ():
            _check(_are_numbers(ends, 3) and min(ends) > 0, "spacing")
        _check(isinstance(self.profile, tuple) and len(self.profile) == 2, "profile")
        _check(all(map(_is_name, self.profile)), "profile")
        for name in ("data_digest", "split_digest", "weights_sha256"):
            value = getattr(self, name)
            _check(isinstance(value, str) and SHA256.fullmatch(value) is not None, name)


def _check(sound: bool, name: str) -> None:
    if not sound:
        raise ValueError(f"{name} has a value that it cannot have")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _are_numbers(value: object, count: int) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        and all(map(math.isfinite, value))
    )


def _tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
