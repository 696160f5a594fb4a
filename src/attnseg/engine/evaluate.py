"""Whole cases: slices predicted, stacked at native size, scored in 3D, drawn."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from attnseg.data.slices import network_image, network_tensor
from attnseg.data.store import StoredCase
from attnseg.layers.conv import resize
from attnseg.metrics.masks import predicted_masks
from attnseg.metrics.strict import Strict
from attnseg.models.model import SegmentationModel
from attnseg.progress import track

Volume = NDArray[np.bool_]


@torch.inference_mode()
def predict(
    model: SegmentationModel,
    case: StoredCase,
    size: tuple[int, int],
    multilabel: bool,
    batch_size: int,
) -> Volume:
    """Segment one case.

    Logits, not masks, are resized to the native size: bilinear, then the decision per pixel.

    Args:
        model: in evaluation mode, on the device to use.
        case: prepared.
        size: height and width that the network takes.
        multilabel: whether classes overlap.
        batch_size: slices at a time.

    Returns:
        Masks `[classes, S, H, W]` at the case's own size.
    """
    device = next(model.parameters()).device
    parts = []
    for start in range(0, case.shape[0], batch_size):
        slices = case.image[start : start + batch_size]
        images = [network_tensor(network_image(s, case.low, case.high, size)) for s in slices]
        logits = resize(model(torch.stack(images).to(device)).float(), case.shape[1:])
        parts.append(predicted_masks(logits, multilabel).transpose(0, 1).cpu().numpy())
    return np.concatenate(parts, 1)


def true_masks(case: StoredCase, classes: int, multilabel: bool) -> Volume:
    """Return a case's masks `[classes, S, H, W]`."""
    mask = np.asarray(case.mask)
    values = [(mask >> i) & 1 if multilabel else mask == i + 1 for i in range(classes)]
    return np.stack(values).astype(bool)


def score_cases(
    model: SegmentationModel,
    cases: Sequence[StoredCase],
    size: tuple[int, int],
    classes: tuple[str, ...],
    multilabel: bool,
    batch_size: int,
    profile: Strict,
    split: str,
) -> pd.DataFrame:
    """Predict and score cases.

    Args:
        model: as for `predict`.
        cases: prepared.
        size: height and width that the network takes.
        classes: foreground classes.
        multilabel: whether they overlap.
        batch_size: slices at a time.
        profile: the metric convention.
        split: what the cases are, for the table and the progress.

    Returns:
        A row per case, class and metric: `split`, `patient`, `case`, `class`, `metric`, `value`
        (NaN if undefined) and `profile`.
    """
    rows = []
    for case in track(cases, f"Evaluating {split}", "cases"):
        truth = true_masks(case, len(classes), multilabel)
        prediction = predict(model, case, size, multilabel, batch_size)
        for name, true, predicted in zip(classes, truth, prediction, strict=True):
            for metric, value in profile.score(true, predicted, case.spacing).items():
                rows.append((split, case.patient, case.case, name, metric, value, profile.name))
    columns = ["split", "patient", "case", "class", "metric", "value", "profile"]
    return pd.DataFrame(rows, columns=columns)
