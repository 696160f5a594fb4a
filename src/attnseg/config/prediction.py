"""Options of prediction: the networks, the images, and the clean-up of the masks."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from attnseg.config.errors import OptionError
from attnseg.config.nodes import CommandOptions, Folder, Node

Sizes = Annotated[float, Field(ge=0)] | dict[str, Annotated[float, Field(ge=0)]] | None
OutputType = Literal["dicom_seg", "rtstruct", "nifti"]
Counts = NonNegativeInt | dict[str, NonNegativeInt] | None


class Postprocess(Node):
    """Clean-up of masks: of all classes, or of those that are named."""

    largest_component: bool | list[str] = False
    min_ml: Sizes = None
    min_pixels: Counts = None


class Predict(CommandOptions):
    """The networks, the images, and how they are segmented.

    Attributes:
        device: where the networks run.
    """

    run: Folder | Annotated[list[Folder], Field(min_length=1)] | None
    study: Folder | None
    capsule: Folder | None
    input: Folder
    output: Folder
    backend: Literal["torch", "onnx"]
    device: Literal["cpu", "cuda"]
    threads: PositiveInt | None
    batch_size: PositiveInt
    flips: list[Literal["h", "v"]]
    tiles: Annotated[float, Field(ge=0, lt=1)] | None
    probabilities: bool
    uncertainty: bool
    overlays: bool
    output_type: OutputType
    postprocess: Postprocess

    @model_validator(mode="after")
    def _check_networks(self) -> Self:
        if sum(source is not None for source in (self.run, self.study, self.capsule)) != 1:
            raise OptionError(
                "run", "give one of run=DIR, run=[DIR,DIR], study=DIR and capsule=FILE"
            )
        if self.backend == "onnx" and self.device == "cuda":
            raise OptionError(
                "device", "backend=onnx runs on the CPU; use device=cpu or backend=torch"
            )
        return self
