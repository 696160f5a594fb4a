"""The inference spec: everything about a trained run but its weights, as plain data.

It is `recipe.json` in exports and capsules. A stranger may have written such a file, so every value
is checked before it is used.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from attnseg.data.labels import MAX_EXCLUSIVE, MAX_OVERLAPPING, Labels
from attnseg.data.readers.nifti import PLANES
from attnseg.data.slicing import SliceView
from attnseg.errors import CheckpointError

VERSION: Literal[1] = 1


def _only(accepts: Callable[[Any], bool]) -> AfterValidator:
    """Return a validator that refuses the values for which `accepts` is false."""

    def check(value: Any) -> Any:  # noqa: ANN401
        if not accepts(value):
            raise ValueError("refused")
        return value

    return AfterValidator(check)


Name = Annotated[str, Field(min_length=1, max_length=200), _only(str.isprintable)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, le=255)]
Pixels = Annotated[int, Field(ge=1, le=1 << 15)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Millimetres = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
VoxelSize = tuple[Millimetres, Millimetres, Millimetres]


class InferenceSpec(BaseModel):
    """How images become the input of a network, and its logits become masks.

    Attributes:
        run: id of the run.
        model: name of the model.
        attn: name of the attention.
        dataset: name of the dataset.
        classes: names of the foreground classes.
        multilabel: whether classes may overlap.
        values: value of each class in a written label map; `None` for 1, 2, ...
        channels: number of an image's channels, before slices are stacked.
        size: height and width of the network's input, pixels.
        slices: number of slices that the network sees at once, odd.
        stride: distance between these, in slices.
        window: intensities that become 0 and 1; `None` for the 0.5 and 99.5 percentiles of each
            case and channel.
        volumetric: whether the images are scans; false for pictures.
        plane: orientation of a scan's slices.
        spacing: smallest and largest voxel size of the training scans along slices, rows and
            columns, mm; `None` if unknown.
        profile: name and digest of the metric profile that scored the run.
        data_digest: SHA-256 of all data.
        split_digest: SHA-256 of the split.
        weights_sha256: SHA-256 of the checkpoint.
        version: of this format.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    run: Name
    model: Name
    attn: Name
    dataset: Name
    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_EXCLUSIVE)]
    multilabel: bool
    values: tuple[Annotated[int, Field(ge=1, le=65535)], ...] | None = None
    channels: Annotated[int, Field(ge=1, le=64)]
    size: tuple[Pixels, Pixels]
    slices: Annotated[Count, _only(lambda number: number % 2 == 1)]
    stride: Count
    window: tuple[Finite, Finite] | None
    volumetric: bool
    plane: Annotated[str, _only(PLANES.__contains__)]
    spacing: tuple[VoxelSize, VoxelSize] | None
    profile: tuple[Name, Name]
    data_digest: Sha256
    split_digest: Sha256
    weights_sha256: Sha256
    version: Literal[1] = VERSION

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if len(self.classes) > MAX_OVERLAPPING and self.multilabel:
            raise ValueError(f"classes: more than {MAX_OVERLAPPING} that overlap")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name twice")
        if self.values is not None and (
            self.multilabel or not len(set(self.values)) == len(self.values) == len(self.classes)
        ):
            raise ValueError("values: not one for each class")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window: empty")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_usual_values(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields; older versions know no `values`."""
        fields: dict[str, Any] = dump(self)
        if self.values is None:
            fields.pop("values", None)
        return fields

    @property
    def view(self) -> SliceView:
        """How slices become the network's input."""
        return SliceView(self.size, self.slices, self.stride)

    @property
    def labels(self) -> Labels:
        """Foreground classes, and whether they overlap."""
        return Labels(self.classes, self.multilabel)

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return self.channels * self.slices

    def to_json(self) -> str:
        """Return the spec as text."""
        return json.dumps(self.model_dump(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, path: str | Path = "recipe.json") -> Self:
        """Parse what `to_json` wrote; an error names `path` and the first fault."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("no object of keys and values")
            if values.get("version") != VERSION:
                raise ValueError(f"version {str(values.get('version'))[:20]}, not {VERSION}")
            return cls.model_validate_json(text)
        except (ValueError, RecursionError) as error:  # ValidationError is a ValueError
            reason = _first_fault(error) if isinstance(error, ValidationError) else str(error)
            raise CheckpointError(
                f"{path}: not an inference spec of this version ({reason}); export the run again"
            ) from error


def _first_fault(error: ValidationError) -> str:
    """Describe the first fault in a few words; the text may be hostile, so little is quoted."""
    fault: Any = error.errors(include_url=False)[0]
    if not fault["loc"]:
        return str(fault["ctx"]["error"])[:80] if "ctx" in fault else "no JSON"
    name = str(fault["loc"][0])[:40]
    kinds = {"missing": "is missing", "extra_forbidden": "is unknown"}
    return f"{name} {kinds.get(fault['type'], 'has a value that it cannot have')}"
