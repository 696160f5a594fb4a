"""Segmentation and scoring of whole cases in 3D, under one metric profile or several."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attnseg.data.labels import Labels, Masks
from attnseg.data.slicing import SliceView
from attnseg.data.store import StoredCase
from attnseg.evaluation.pipelines import Pipeline, segment_case
from attnseg.metrics.calibration import Calibration
from attnseg.metrics.profiles.profile import Profile, Values, score_known_voxels
from attnseg.models.model import SegmentationModel
from attnseg.prediction.segment import Member, Segmenter
from attnseg.progress import track
from attnseg.runs.reopen import TorchNetwork

COLUMNS = ("split", "patient", "case", "class", "metric", "value", "profile")
OnCase = Callable[[StoredCase, Masks, Masks], None]  # gets a case, its truth and its prediction
Row = tuple[str | float, ...]


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

    A case is scored while the next one is segmented, so that a GPU does not wait for distances.
    That takes a thread, no process: the metrics are computed outside of Python's lock, and a
    process would need copies of the masks.

    `split` names the cases in the table and the progress; `on_case` receives each case and its
    masks, `[classes, S, H, W]` each; the pixels of all cases are added to `pooled`.

    Returns:
        A row per case, class, metric and profile: `COLUMNS`; values are NaN if undefined.

    Raises:
        CheckpointError: the network returns NaN or infinity.
    """
    rows: list[Row] = []
    labels = segmenter.labels
    scoring: Future[list[Row]] | None = None

    def score_masks(
        case: StoredCase, truth: Masks, prediction: Masks, measured: dict[str, Values]
    ) -> list[Row]:
        ignored = find_ignored_voxels(case, segmenter, pipeline)
        found: list[Row] = []
        for profile in profiles:
            given = truth, prediction, case.spacing, labels.names, ignored
            scores = score_known_voxels(profile, *given)
            scores += profile.select_scores(measured, labels.names)
            found += [(split, case.patient, case.case, *score, profile.name) for score in scores]
        return found

    with ThreadPoolExecutor(1) as background:
        for case in track(cases, f"Evaluating {split}", "cases"):
            calibration = Calibration(len(labels)) if pipeline == "native" else None
            truth, prediction = segment_case(pipeline, segmenter, case, calibration)
            if pooled is not None and calibration is not None:
                pooled.merge(calibration)
            if on_case is not None:
                on_case(case, truth, prediction)
            measured = {} if calibration is None else calibration.scores()
            if scoring is not None:
                rows += scoring.result()
            scoring = background.submit(score_masks, case, truth, prediction, measured)
        if scoring is not None:
            rows += scoring.result()
    return pd.DataFrame(rows, columns=list(COLUMNS))


def find_ignored_voxels(
    case: StoredCase, segmenter: Segmenter, pipeline: Pipeline
) -> NDArray[np.bool_] | None:
    """Return the voxels `[S, H, W]` of a case to be ignored, at the size that is scored."""
    ignored = segmenter.labels.find_ignored(case.mask)
    if ignored is None or pipeline != "network_size":
        return ignored
    (member,) = segmenter.members
    return np.array([member.view.mask(plane) for plane in ignored.astype(np.uint8)], bool)
