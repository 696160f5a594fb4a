"""Notes on reading a comparison, and warnings about its weaknesses."""

from collections.abc import Sequence

import pandas as pd

from attnseg.runs.variants import Variant
from attnseg.study import checks, doubts, statistics
from attnseg.study.margins import Margin
from attnseg.study.metric import ComparedMetric
from attnseg.study.wording import count_text

FEW_PATIENTS = 50  # below this, intervals of Dice are mostly wider than the differences of interest


def write_notes(
    variants: Sequence[Variant],
    split: str,
    metric: ComparedMetric,
    patients: pd.DataFrame,
    margin: Margin,
    seed: int,
) -> list[str]:
    """Return notes on units, the margin, the stability of the ranking and test-set openings."""
    higher_better = patients.dropna().to_numpy(float) * (1 if metric.up else -1)
    notes = [
        "The unit is the patient, weighted as the metric profile weights its cases and classes. "
        "Of these networks, intervals are expanded BCa bootstrap intervals over patients; of the "
        "attention, they count trainings, too. Those marked corr. hold for the whole table.",
        margin.note,
    ]
    if len(higher_better) > 1:
        share = statistics.ranking_flip_rate(higher_better, seed)
        notes.append(
            f"When the patients are resampled, another variant ranks first in {share:.0%} of draws."
        )
    return [*notes, _count_openings(variants)] if split == "test" else notes


def _count_openings(variants: Sequence[Variant]) -> str:
    opened = doubts.total_openings([run for variant in variants for run in variant.runs])
    subject = "test set was" if len(opened) == 1 else f"test sets of {len(opened)} folds were"
    times = ", ".join(map(str, opened)) + " times" if set(opened) != {1} else "once"
    return f"The {subject} opened {times} up to now."


def collect_warnings(
    variants: Sequence[Variant], by: Sequence[str], patients: pd.DataFrame, rows: pd.DataFrame
) -> list[str]:
    """Return reasons to doubt the comparison; tables as in `Comparison`."""
    warnings = checks.warn_of_differences(variants, by)
    if len(patients) < FEW_PATIENTS:
        warnings.append(
            f"patients: {len(patients)}, fewer than {FEW_PATIENTS}; small differences cannot be "
            "shown"
        )
    if rows["undefined"].nunique() > 1:
        counts = zip(rows.index, rows["undefined"], rows["values"], strict=True)
        shares = ", ".join(f"{name} {count} of {total}" for name, count, total in counts)
        warnings.append(
            f"the numbers of undefined values differ ({shares}): means are not over the same "
            "cases, but differences are; undefined is a class that is absent and was not "
            "predicted, or to which the profile gives no number"
        )
    if dropped := len(patients) - len(patients.dropna()):
        warnings.append(
            f"comparisons with a variant leave out those without a value of it: "
            f"{count_text(dropped, 'patient')}"
        )
    return warnings
