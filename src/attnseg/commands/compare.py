"""Compares the variants among finished runs: quality with intervals over patients, beside cost.

attnseg compare runs=[outputs/phantom/setr/*/*] baseline=qkv
attnseg compare runs=[DIR,DIR] metric=hd95_mm margin=1
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from attnseg.commands.command import Command
from attnseg.config.nodes import Fraction, Node


class Compare(Node):
    """The runs that are compared, and the terms."""

    choices: dict[str, str]
    runs: list[str]
    baseline: str
    by: Annotated[list[str], Field(min_length=1)]
    split: Literal["val", "test"]
    metric: str | None
    margin: PositiveFloat
    level: Fraction
    cases: PositiveInt
    outputs: str
    seed: NonNegativeInt


def run(options: Compare) -> object:
    """Compare runs and return the comparison."""
    from attnseg.study.compare import compare_runs

    return compare_runs(**options.model_dump(exclude={"choices"}))


COMMAND = Command("compare", __doc__, Compare, run)
