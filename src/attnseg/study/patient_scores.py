"""Aggregation of case scores to one number per patient and variant."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant

CELL = ["patient", "case", "class"]
CASES_FIRST = "mean over classes, then cases"  # in the rules of a profile
# Metrics that weight classes by their true voxels in all cases, and the metric they average.
WEIGHTED = {"weighted_jaccard": "jaccard"}


def average_patients(
    run: RunFolder, split: str, metric: str, classes: Sequence[str] | None = None
) -> pd.Series:
    """Return one value per patient, whose mean is the average that the run's profile gives."""
    rows = select_scores(run, split, metric, classes)
    values = rows.set_index(CELL)["value"].to_frame()
    weights = None
    if metric in WEIGHTED:
        voxels = select_scores(run, split, "truth_voxels").groupby("class")["value"].sum()
        weights = voxels.to_frame("value")
    return weigh_patients(values, weights, averages_cases_first(run.profile))["value"]


def averages_cases_first(profile: Mapping[str, Any]) -> bool:
    """Return whether a profile averages the classes of each case before the cases."""
    return CASES_FIRST in str(profile.get("unit", ""))


def weigh_patients(
    values: pd.DataFrame, weights: pd.DataFrame | None = None, cases_first: bool = False
) -> pd.DataFrame:
    """Return values by patient whose mean is the profile's average over cases and classes.

    A patient's value is its influence on the average: patients with more cases, or with classes
    that few patients have, lie further from it. Where all patients have as many cases of the same
    classes, it is the mean over classes and cases.

    Args:
        values: by patient, case and class (rows) and run (columns); NaN is left out.
        weights: of the classes (rows) in each run; `None` if all count the same.
        cases_first: whether the classes of each case are averaged before the cases.

    Returns:
        By patient (rows) and run (columns); NaN for patients without any value.
    """
    if cases_first and weights is None:
        values = values.groupby(level=["patient", "case"], sort=False).mean()
        values = pd.concat({"": values}, names=["class"])
    known = values.groupby(level="patient").count()
    patients = (known > 0).sum()
    influence = known * 0.0
    total = patients * 0.0
    for name, rows in values.groupby(level="class", sort=False):
        groups = rows.groupby(level="patient")
        sums, counts = (
            table.reindex(known.index, fill_value=0) for table in (groups.sum(), groups.count())
        )
        weight = (counts.sum() > 0) * (1.0 if weights is None else weights.loc[str(name)])
        average = sums.sum() / counts.sum()
        own = average + (sums - counts * average) * patients / counts.sum()
        influence += (own * weight).fillna(0)
        total += weight
    return (influence / total).where(known > 0)


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
    """Return values by patient (rows) and seed (columns), each patient from its fold."""
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


def count_values(variant: Variant, split: str, metric: str) -> int:
    """Count the values of a variant, undefined ones included, over cases, classes and runs."""
    return sum(len(select_scores(run, split, metric)) for run in variant.runs)
