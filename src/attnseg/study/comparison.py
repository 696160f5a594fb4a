"""What a comparison found, before it is written down."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from attnseg.study.contrasts import Contrast
from attnseg.study.metric import Metric


@dataclass(frozen=True)
class Comparison:
    """All that was found.

    Attributes:
        title: what was compared under which convention; stands on every table.
        metric: that was compared.
        baseline: name of the variant that the others are held against; of several, what those have
            in common.
        bases: what each of the others is held against.
        margin: of equivalence, in the metric's unit.
        level: of the intervals.
        variants: a row per variant, each baseline before its others: quality, seeds, counts, costs.
        against: the others against the baseline, one family.
        pairs: all pairs, one family.
        classes: the others against the baseline class by class, one family.
        class_means: means by class and variant.
        class_undefined: numbers of cases left out, by class and variant.
        patients: values by patient and variant.
        verdicts: a sentence per comparison with the baseline.
        notes: how to read the numbers, and what else must be known.
        warnings: reasons for doubt.
        watermark: what must stand beside every number, if anything.
    """

    title: str
    metric: Metric
    baseline: str
    bases: Mapping[str, str]
    margin: float
    level: float
    variants: pd.DataFrame
    against: list[Contrast]
    pairs: list[Contrast]
    classes: list[Contrast]
    class_means: pd.DataFrame
    class_undefined: pd.DataFrame
    patients: pd.DataFrame
    verdicts: list[str]
    notes: list[str]
    warnings: list[str]
    watermark: str | None
