"""Results of a comparison, from which tables, figures and the page are made."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from attnseg.study.contrasts import Contrast, PairedValues
from attnseg.study.detection import ErrorCount
from attnseg.study.metric import ComparedMetric


@dataclass(frozen=True)
class Comparison:
    """Results of a comparison; each list of contrasts is one family."""

    title: str  # dataset, split, metric and profile; stands on every table
    metric: ComparedMetric
    baseline: str  # its name; if there are several, the part of the name they share
    bases: Mapping[str, str]  # baseline of each other variant, by name
    margin: float | None  # of equivalence, in the metric's unit; `None` if none was given
    level: float  # of the intervals
    # Quality, seeds, counts and costs of each variant, whose baseline precedes it.
    variants: pd.DataFrame
    against: list[Contrast]  # the other variants against their baselines
    pairs: list[Contrast]  # all pairs of variants
    classes: list[Contrast]  # the other variants against their baselines for each class
    class_means: pd.DataFrame  # by class (rows) and variant (columns)
    class_undefined: pd.DataFrame  # numbers of undefined values, in the same form
    values: list[PairedValues]  # of each comparison in `against`, by patient and seed
    seed_means: pd.DataFrame  # means over patients by variant (rows) and seed (columns)
    splits: int  # number of splits (folds) that the runs were trained on
    patients: pd.DataFrame  # values by patient (rows) and variant (columns)
    errors: list[ErrorCount]  # missed and spurious classes of each variant
    controls: list[str]  # variants without token mixing
    headline: str  # all verdicts in a sentence
    verdicts: list[str]  # one sentence per comparison with a baseline
    notes: list[str]  # how to read the numbers
    warnings: list[str]  # reasons to doubt the numbers
    watermark: str | None  # text that must stand beside every number
