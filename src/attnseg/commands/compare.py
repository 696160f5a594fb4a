"""Compares variants of finished runs: scores with intervals over patients, next to the cost.

attnseg compare runs=[outputs/phantom/setr/*/*] baseline=qkv
attnseg compare runs=[DIR,DIR] metric=hd95_mm margin=1
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from attnseg.commands.command import Command
from attnseg.config.nodes import CommandOptions, Fraction
from attnseg.progress import loading_note


class Compare(CommandOptions):
    """Options of `attnseg compare`.

    Attributes:
        runs: run folders, or patterns of them.
        baseline: the variant that the others are compared with.
        by: options whose values distinguish the variants, such as `model` and `attn`; `conversion`
            tells converted networks from those that were trained from scratch.
        split: the cases that are compared.
        metric: of the runs' profile; by default its first.
        margin: the largest difference that does not matter, in the metric's unit; by default the
            one that the study declared, or 0.01 of a share.
        level: of the confidence intervals.
        cases: number of cases that the page shows.
        outputs: folder for the tables and the page.
        seed: of the bootstrap and of the permutations.
    """

    runs: list[str]
    baseline: str
    by: Annotated[list[str], Field(min_length=1)]
    split: Literal["val", "test"]
    metric: str | None
    margin: PositiveFloat | None
    level: Fraction
    cases: PositiveInt
    outputs: str
    seed: NonNegativeInt


def run(options: Compare) -> object:
    """Compare runs and return the comparison."""
    with loading_note():
        from attnseg.study.compare import compare_runs
    return compare_runs(**options.model_dump(exclude={"choices"}))


COMMAND = Command("compare", __doc__, Compare, run)
