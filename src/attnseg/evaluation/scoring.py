"""Segmentation and scoring of whole cases in 3D, under one metric profile or several."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from attnseg.data.labels import Labels, Masks
from attnseg.data.slicing import SliceView
from attnseg.data.store import StoredCase
from attnseg.evaluation.pipelines import Pipeline, segment_case
from attnseg.metrics.calibration import Calibration
from attnseg.metrics.profiles.profile import Profile, score_known_voxels
from attnseg.models.model import SegmentationModel
from attnseg.prediction.segment import Member, Segmenter
from attnseg.progress import track
from attnseg.runs.reopen import TorchNetwork

COLUMNS = ("split", "patient", "case", "class", "metric", "value", "profile")
OnCase = Callable[[StoredCase, Masks, Masks], None]  # gets a case, its truth and its prediction


def make_segmenter(
    model: SegmentationModel, labels: Labels, view: SliceView, batch_size: int
) -> Segmenter:
    """Return the segmenter that scores a model, on the device that holds the model."""
    device = next(model.parameters()).device
    return Segmenter(labels, [Member(TorchNetwork(model, str(device)), view)], batch_size)


def score_cases(
    segmenter: Segmenter,
    cases: Sequence[StoredCase],
    profiles: Sequence[Profile],
    split: str,
    pipeline: Pipeline = "native",
    on_case: OnCase | None = None,
    pooled: Calibration | None = None,
) -> pd.DataFrame:
    """Segment each case once, and score it under each profile.

    `split` names the cases in the table and the progress; `on_case` receives each case and its
    masks, `[classes, S, H, W]` each; the pixels of all cases are added to `pooled`.

    Returns:
        A row per case, class, metric and profile: `COLUMNS`; values are NaN if undefined.

    Raises:
        CheckpointError: the network returns NaN or infinity.
    """
    rows = []
    labels = segmenter.labels
    for case in track(cases, f"Evaluating {split}", "cases"):
        calibration = Calibration(len(labels)) if pipeline == "native" else None
        truth, prediction = segment_case(pipeline, segmenter, case, calibration)
        if pooled is not None and calibration is not None:
            pooled.merge(calibration)
        if on_case is not None:
            on_case(case, truth, prediction)
        ignored = labels.find_ignored(case.mask)
        if ignored is not None and pipeline == "network_size":
            (member,) = segmenter.members
            resized = [member.view.mask(plane) for plane in ignored.astype(np.uint8)]
            ignored = np.array(resized, bool)
        measured = {} if calibration is None else calibration.scores()
        for profile in profiles:
            given = truth, prediction, case.spacing, labels.names, ignored
            scores = score_known_voxels(profile, *given)
            scores += profile.select_scores(measured, labels.names)
            rows += [(split, case.patient, case.case, *score, profile.name) for score in scores]
    return pd.DataFrame(rows, columns=list(COLUMNS))
