"""Plans a comparison: the patients and seeds that show a difference, or that there is none.

attnseg plan margin=0.01 patient_sd=0.03 seed_sd=0.005
attnseg plan margin=0.01 runs=[outputs/nnunet/setr/*/*] difference=0.02 comparisons=3
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from attnseg.commands.command import Command
from attnseg.config.nodes import CommandOptions, Fraction
from attnseg.progress import loading_note


class Plan(CommandOptions):
    """Options of `attnseg plan`.

    The variation is that of a pilot's finished runs, or is given. All numbers are in the metric's
    unit.

    Attributes:
        margin: the largest difference that does not matter.
        difference: the true difference that is to be shown; by default the margin.
        runs: run folders of a pilot with two seeds or more, or patterns of them.
        baseline: the pilot's variant that the others are compared with.
        by: options whose values distinguish the pilot's variants.
        split: the cases of the pilot.
        metric: of the pilot's profile; by default its first.
        patient_sd: standard deviation of the patients' true differences.
        seed_sd: standard deviation of a seed's effect on the mean over patients.
        rest_sd: standard deviation of a seed's effect on a single patient.
        loss: what a patient loses by a failure.
        seeds: numbers of trainings of each variant.
        comparisons: number of variants that are compared with the baseline.
        power: the chance of showing what is true.
        level: of the confidence intervals.
        outputs: folder for the curves.
    """

    margin: PositiveFloat
    difference: PositiveFloat | None
    runs: list[str]
    baseline: str
    by: Annotated[list[str], Field(min_length=1)]
    split: Literal["val", "test"]
    metric: str | None
    patient_sd: NonNegativeFloat | None
    seed_sd: NonNegativeFloat | None
    rest_sd: NonNegativeFloat
    loss: NonNegativeFloat
    seeds: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    comparisons: PositiveInt
    power: Fraction
    level: Fraction
    outputs: str


def run(options: Plan) -> object:
    """Print and draw the plan; return the patients that are needed, by question and seeds."""
    with loading_note():
        from attnseg.study.plan import plan_comparison
    return plan_comparison(**options.model_dump(exclude={"choices"}))


COMMAND = Command("plan", __doc__, Plan, run)
