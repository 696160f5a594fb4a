"""Options of a search, and the space that it draws from."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from attnseg.config.errors import OptionError, first_problem
from attnseg.config.nodes import Node
from attnseg.config.training import Study


class Range(Node):
    """Numbers between two ends; whole ones if both ends are."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _check_ends(self) -> Self:
        if not self.low < self.high:
            raise OptionError("", f"low {self.low} is not below high {self.high}; correct them")
        if self.log and self.low <= 0:
            raise OptionError("", f"low {self.low} has no logarithm; give a number above 0")
        if self.log and self.step is not None:
            raise OptionError("", "log and step exclude each other; leave one out")
        if self.step is not None and self.step <= 0:
            raise OptionError("", f"step {self.step} leads nowhere; give a number above 0")
        return self


class Choices(Node):
    """A list of values."""

    choices: Annotated[list[bool | int | float | str | None], Field(min_length=1)]


def _range_or_choices(node: object) -> object:
    """Decide by the keys, so that a mistake is reported of one kind alone."""
    if not isinstance(node, Mapping):
        raise OptionError("", f"{node!r} is no range; give low and high, or choices")
    kind: type[Range | Choices] = Choices if "choices" in node else Range
    try:
        return kind.model_validate(node)
    except ValidationError as error:
        key, _, message = first_problem(error, kind, node).partition(": ")
        raise OptionError(key, message) from error


def _not_empty(space: object) -> object:
    if not isinstance(space, Mapping) or not space:
        hint = "choose one as search=NAME or give search.space={KEY:{low:1e-4,high:1e-2,log:true}}"
        raise OptionError("", f"not set; {hint}")
    return space


class TunedStudy(Node):
    """Variants that are tuned alike, and the comparison of their winners.

    Attributes:
        variants: choices by key or group, such as `attn`; of several keys, every combination.
        seeds: of the trainings of each winner.
        compare: the comparison, as in a sweep.
    """

    variants: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    compare: Study


class Search(Node):
    """The space, the number of trials, and how they are drawn and ended early.

    Attributes:
        sampler: draws the trials.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None
    space: Annotated[
        dict[str, Annotated[Range | Choices, BeforeValidator(_range_or_choices)]],
        BeforeValidator(_not_empty),
    ]
    trials: PositiveInt
    sampler: Literal["tpe", "random"]
    seed: NonNegativeInt
    pruner: Literal["median", "halving", "none"]
    startup: NonNegativeInt
    warmup: NonNegativeInt
    report: bool
    study: TunedStudy | None
