"""Results of a comparison, from which tables, figures and the page are made."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from attnseg.study.contrasts import Contrast
from attnseg.study.metric import ComparedMetric


@dataclass(frozen=True)
class Comparison:
    """Results of a comparison.

    Attributes:
        title: dataset, split, metric and profile; stands on every table.
        metric: the compared metric.
        baseline: name of the baseline; if there are several, the part of the name they share.
        bases: baseline of each other variant, by name.
        margin: of equivalence, in the metric's unit.
        level: of the intervals.
        variants: one row per variant, each baseline before the variants compared with it: quality,
            seeds, counts, costs.
        against: the other variants against their baselines, one family.
        pairs: all pairs of variants, one family.
        classes: the other variants against their baselines for each class, one family.
        class_means: means by class (rows) and variant (columns).
        class_undefined: numbers of undefined values by class (rows) and variant (columns).
        patients: values by patient (rows) and variant (columns).
        verdicts: one sentence per comparison with a baseline.
        notes: how to read the numbers.
        warnings: reasons to doubt the numbers.
        watermark: text that must stand beside every number, if any.
    """

    title: str
    metric: ComparedMetric
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
