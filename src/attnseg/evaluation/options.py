"""Options of commands that open a finished run again, and of its evaluation."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from attnseg.config.errors import OptionError
from attnseg.config.nodes import CommandOptions, Component, Folder


class Reopen(CommandOptions):
    """The cases of a finished run, and where its data are.

    Attributes:
        device: where the network runs.
    """

    split: Literal["val", "test"]
    root: Folder | None  # of the dataset, if it has moved
    data: Folder | None  # `paths.data`, if it has moved
    device: Literal["cpu", "cuda"]


class Evaluate(Reopen):
    """Options of `attnseg evaluate` and `attnseg metrics_diff`.

    Attributes:
        profile: the metric profiles, by name.
        run: a finished run, or else `pred` and `truth`: folders of masks.
        pipeline: how prediction and truth are brought to one size; see `evaluation/pipelines.py`.
        classes: of the masks in folders: names of 1, 2, ..., or a value or several by name.
        ignore_label: value of voxels that the truth in a folder leaves open.
        patient: a regular expression that finds a patient's name in a file's name.
        worst: number of the worst cases that are drawn.
        outputs: folder for tables and pictures.
    """

    profile: dict[str, Component]
    run: Folder | None
    pipeline: Literal["native", "zoom", "network_size"]
    pred: Folder | None
    truth: Folder | None
    classes: list[str] | dict[str, int | list[int]] | None
    ignore_label: PositiveInt | None
    patient: str | None
    worst: NonNegativeInt
    outputs: Folder | None

    @model_validator(mode="after")
    def _check_masks(self) -> Self:
        folders = self.pred is not None and self.truth is not None
        if (self.run is not None) == folders or (self.pred is None) != (self.truth is None):
            raise OptionError("run", "give a run folder as run=DIR, or masks as pred=DIR truth=DIR")
        return self
