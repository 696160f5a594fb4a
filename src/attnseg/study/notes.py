"""How to read a comparison, and what speaks against it."""

from collections.abc import Sequence

import pandas as pd

from attnseg.runs.finished import Variant
from attnseg.study import comparable, statistics
from attnseg.study.metric import Metric

FEW = 50  # patients; ours: with fewer, intervals of Dice are mostly wider than what is looked for


def notes(
    variants: Sequence[Variant],
    split: str,
    metric: Metric,
    patients: pd.DataFrame,
    margin: float,
    seed: int,
) -> list[str]:
    """Return how to read the numbers, how stable the ranking is, and how often the test was opened.

    Args:
        variants: that were compared.
        split: `val` or `test`.
        metric: that was compared.
        patients: values by patient and variant.
        margin: of equivalence, in the metric's unit.
        seed: of resampling.
    """
    higher = patients.dropna().to_numpy(float) * (1 if metric.up else -1)
    said = [
        "The unit is the patient: the mean over its cases, classes and seeds. Intervals are "
        "expanded BCa bootstrap intervals over patients; those marked corr. hold for the whole "
        "table.",
        f"Equivalent means within {margin:g} {metric.unit}, a margin of ours: set margin to what "
        "matters for your use.",
    ]
    if len(higher) > 1:
        share = statistics.ranking_flip_rate(higher, seed)
        said.append(f"With other patients, another variant is the best in {share:.0%} of draws.")
    return [*said, _openings(variants)] if split == "test" else said


def _openings(variants: Sequence[Variant]) -> str:
    opened: dict[str, int] = {}
    for run in (run for variant in variants for run in variant.runs):
        found = run.facts["test_set"]
        opened[found["digest"]] = max(found["openings"], opened.get(found["digest"], 0))
    counts = ", ".join(map(str, opened.values()))
    which = "test set was" if len(opened) == 1 else f"test sets of {len(opened)} folds were"
    return f"The {which} opened {counts} times by the end of the last of these runs."


def warnings(
    variants: Sequence[Variant], by: Sequence[str], patients: pd.DataFrame, rows: pd.DataFrame
) -> list[str]:
    """Return reasons for doubt.

    Args:
        variants: that were compared.
        by: what makes a variant.
        patients: values by patient and variant.
        rows: a row per variant; see `Comparison.variants`.
    """
    said = comparable.warnings(variants, by)
    if len(patients) < FEW:
        said.append(
            f"patients: {len(patients)}, fewer than {FEW}; small differences cannot be shown"
        )
    if rows["undefined"].nunique() > 1:
        counts = ", ".join(f"{name} {count}" for name, count in rows["undefined"].items())
        said.append(f"undefined values differ ({counts}): means are not over the same cases")
    if lost := len(patients) - len(patients.dropna()):
        said.append(f"{lost} patients lack a value of some variant and are left out there")
    return said
