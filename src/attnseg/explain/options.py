"""Options of attention maps."""

from typing import Annotated, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from attnseg.config.errors import OptionError
from attnseg.config.nodes import AsTuple, Folder, Names
from attnseg.evaluation.options import Reopen


class Explain(Reopen):
    """The runs whose attention is drawn, and the place.

    Attributes:
        slice: its number, from 1.
        point: row and column of a pixel of the slice, from 0.
        layer: names or patterns of layers; none for all.
    """

    run: Folder | None
    runs: Names
    case: str | None
    slice: PositiveInt | None
    point: Annotated[tuple[NonNegativeInt, NonNegativeInt], AsTuple] | None
    layer: Names
    heads: bool
    scores: bool
    outputs: Folder | None

    @model_validator(mode="after")
    def _check_runs(self) -> Self:
        if (self.run is None) == (not self.runs):
            raise OptionError("run", "give a run folder as run=DIR, or several as runs=[DIR,DIR]")
        return self
