"""From scores of cases to one number per patient and variant."""

from collections.abc import Sequence

import pandas as pd

from attnseg.runs.finished import Run, Variant

# Means over classes by their true voxels in all cases, and what they are the means of.
WEIGHTED = {"weighted_jaccard": "jaccard"}


def of_run(run: Run, split: str, metric: str, classes: Sequence[str] | None = None) -> pd.Series:
    """Return one value per patient: the mean of its cases' values from `by_case`.

    Args:
        run: that was scored.
        split: `val` or `test`.
        metric: name in `cases.csv`.
        classes: to average; `None` for all.

    Returns:
        Values by patient. What is undefined is left out of either mean; NaN where nothing is left.
    """
    return by_case(run, split, metric, classes).groupby("patient").mean()


def by_case(run: Run, split: str, metric: str, classes: Sequence[str] | None = None) -> pd.Series:
    """Return one value per patient and case: the mean of its classes.

    A weighted metric weights the classes by their true voxels in all cases of the run's split.
    """
    rows = select(run, split, metric, classes)
    case = [rows["patient"], rows["case"]]
    if metric not in WEIGHTED:
        return rows["value"].groupby(case, sort=False).mean()
    voxels = select(run, split, "truth_voxels").groupby("class")["value"].sum()
    weights = rows["class"].map(voxels).where(rows["value"].notna())
    total = weights.groupby(case, sort=False).sum(min_count=1)
    return (rows["value"] * weights).groupby(case, sort=False).sum(min_count=1) / total


def select(run: Run, split: str, metric: str, classes: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the rows of `cases.csv` for one split and metric; of what it weights, if it does."""
    metric = WEIGHTED.get(metric, metric)
    rows = run.scores[(run.scores["split"] == split) & (run.scores["metric"] == metric)]
    return rows if classes is None else rows[rows["class"].isin(classes)]


def by_seed(
    variant: Variant, split: str, metric: str, classes: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return values by patient (rows) and seed (columns); folds are put together."""
    columns = {}
    for seed in sorted(variant.seeds):
        folds = [of_run(r, split, metric, classes) for r in variant.runs if r.seed == seed]
        columns[seed] = pd.concat(folds).groupby(level=0).mean()
    return pd.DataFrame(columns)


def by_variant(
    variants: Sequence[Variant], split: str, metric: str, classes: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return values by patient (rows) and variant (columns), averaged over seeds."""
    return pd.DataFrame(
        {v.name: by_seed(v, split, metric, classes).mean(axis=1) for v in variants}
    ).sort_index()


def undefined(
    variant: Variant, split: str, metric: str, classes: Sequence[str] | None = None
) -> int:
    """Count cases and classes that a variant's mean leaves out, over all its runs."""
    found = [select(run, split, metric, classes)["value"] for run in variant.runs]
    return int(pd.concat(found).isna().sum())
