"""Whole cases predicted and scored in 3D, under one profile or several."""

from collections.abc import Callable, Sequence

import pandas as pd

from attnseg.data.labels import Labels
from attnseg.data.slicing import SliceView
from attnseg.data.store import StoredCase
from attnseg.evaluation.pipelines import Pipeline, Volume, compare
from attnseg.metrics.calibration import Calibration
from attnseg.metrics.profiles.profile import Profile
from attnseg.models.model import SegmentationModel
from attnseg.progress import track

COLUMNS = ("split", "patient", "case", "class", "metric", "value", "profile")


def score_cases(
    model: SegmentationModel,
    cases: Sequence[StoredCase],
    view: SliceView,
    labels: Labels,
    batch_size: int,
    profiles: Sequence[Profile],
    split: str,
    pipeline: Pipeline = "native",
    watch: Callable[[StoredCase, Volume, Volume], None] | None = None,
) -> pd.DataFrame:
    """Predict each case once, and score it under each profile.

    Args:
        model: in evaluation mode, on the device to use.
        cases: prepared.
        view: how slices become the network's input.
        labels: foreground classes.
        batch_size: slices at a time.
        profiles: the metric conventions.
        split: what the cases are, for the table and the progress.
        pipeline: how predictions and truth are brought to one size.
        watch: shown each case with truth and prediction, `[classes, S, H, W]` each.

    Returns:
        A row per case, class, metric and profile: `COLUMNS`; values are NaN if undefined.
    """
    rows = []
    for case in track(cases, f"Evaluating {split}", "cases"):
        calibration = Calibration(len(labels)) if pipeline == "native" else None
        truth, prediction = compare(pipeline, model, case, view, labels, batch_size, calibration)
        if watch is not None:
            watch(case, truth, prediction)
        for profile in profiles:
            scores = profile.score_case(truth, prediction, case.spacing, labels.names)
            named = {metric.name for metric in profile.metrics}
            if calibration is not None and "ece" in named:
                for metric, values in (("ece", calibration.ece()), ("brier", calibration.brier())):
                    found = zip(labels.names, values.tolist(), strict=True)
                    scores += [(name, metric, value) for name, value in found]
            rows += [(split, case.patient, case.case, *score, profile.name) for score in scores]
    return pd.DataFrame(rows, columns=list(COLUMNS))
