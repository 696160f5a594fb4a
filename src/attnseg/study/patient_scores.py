"""Aggregation of case scores to one number per patient and variant."""

from collections.abc import Sequence

import pandas as pd

from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant

# Metrics that weight classes by their true voxels in all cases, and the metric they average.
WEIGHTED = {"weighted_jaccard": "jaccard"}


def average_patients(
    run: RunFolder, split: str, metric: str, classes: Sequence[str] | None = None
) -> pd.Series:
    """Return one value per patient: the mean over its cases of `average_cases`.

    Undefined values are left out of both means; NaN if none is left.
    """
    return average_cases(run, split, metric, classes).groupby("patient").mean()


def average_cases(
    run: RunFolder, split: str, metric: str, classes: Sequence[str] | None = None
) -> pd.Series:
    """Return one value per patient and case: the mean over its classes.

    A weighted metric weights the classes by their true voxels in all cases of the run's split.
    """
    rows = select_scores(run, split, metric, classes)
    case = [rows["patient"], rows["case"]]
    if metric not in WEIGHTED:
        return rows["value"].groupby(case, sort=False).mean()
    voxels = select_scores(run, split, "truth_voxels").groupby("class")["value"].sum()
    weights = rows["class"].map(voxels).where(rows["value"].notna())
    total = weights.groupby(case, sort=False).sum(min_count=1)
    return (rows["value"] * weights).groupby(case, sort=False).sum(min_count=1) / total


def select_scores(
    run: RunFolder, split: str, metric: str, classes: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the rows of `cases.csv` for a split and metric; for a weighted metric, its base's."""
    metric = WEIGHTED.get(metric, metric)
    rows = run.cases[(run.cases["split"] == split) & (run.cases["metric"] == metric)]
    return rows if classes is None else rows[rows["class"].isin(classes)]


def tabulate_seeds(
    variant: Variant, split: str, metric: str, classes: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return values by patient (rows) and seed (columns); folds are pooled."""
    columns = {}
    for seed in sorted(variant.seeds):
        folds = [
            average_patients(r, split, metric, classes) for r in variant.runs if r.seed == seed
        ]
        columns[seed] = pd.concat(folds).groupby(level=0).mean()
    return pd.DataFrame(columns)


def tabulate_variants(
    variants: Sequence[Variant], split: str, metric: str, classes: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return values by patient (rows) and variant (columns), averaged over seeds."""
    return pd.DataFrame(
        {v.name: tabulate_seeds(v, split, metric, classes).mean(axis=1) for v in variants}
    ).sort_index()


def count_undefined(
    variant: Variant, split: str, metric: str, classes: Sequence[str] | None = None
) -> int:
    """Count the values that a variant's mean leaves out, over cases, classes and runs."""
    values = [select_scores(run, split, metric, classes)["value"] for run in variant.runs]
    return int(pd.concat(values).isna().sum())
