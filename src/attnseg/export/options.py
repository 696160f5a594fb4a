"""Options of exports and capsules."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from attnseg.config.errors import OptionError
from attnseg.config.nodes import CommandOptions, Component, Folder
from attnseg.config.prediction import Postprocess
from attnseg.evaluation.options import Reopen

EXPRESSION = ("$", "@", "%")  # A text that begins so is evaluated by MONAI.


class Export(Reopen):
    """The files that a finished run is exported as.

    Attributes:
        formats: kinds of file that are written.
        authors: who made the network, for the bundle's metadata.
        copyright: who holds the rights in it, and since when; likewise.
        split: the cases on which exports are compared with PyTorch; the test set stays closed.
        device: where they are compared.
    """

    profile: dict[str, Component]
    run: Folder
    formats: Annotated[list[Literal["onnx", "torch", "safetensors", "monai"]], Field(min_length=1)]
    int8: bool
    license: str | None
    authors: str | None
    copyright: str | None
    split: Literal["val"] = "val"  # the test set stays closed
    device: Literal["cpu"] = "cpu"

    @model_validator(mode="after")
    def _check_int8(self) -> Self:
        if self.int8 and "onnx" not in self.formats:
            raise OptionError("int8", "made of the ONNX file; add onnx to formats")
        if self.int8 and len(self.profile) != 1:
            names = ", ".join(self.profile)
            raise OptionError("profile", f"{names}; give one, what int8 costs in it")
        return self

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        for key in ("license", "authors", "copyright"):
            if getattr(self, key) is not None and "monai" not in self.formats:
                raise OptionError(key, "only a MONAI bundle states it; add monai to formats")
        for key in ("authors", "copyright"):
            if (getattr(self, key) or "").startswith(EXPRESSION):
                raise OptionError(key, "MONAI takes it for an expression; begin it with a letter")
        return self


class Capsule(CommandOptions):
    """The run that is packed, and the texts that are packed with it."""

    run: Folder
    output: Folder
    license: str | None
    use: str | None
    postprocess: Postprocess
