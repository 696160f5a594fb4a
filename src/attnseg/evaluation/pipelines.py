"""From a model to the masks that are scored: ours, and two that published tables were made with."""

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from attnseg.data.labels import Labels
from attnseg.data.slices import network_tensor
from attnseg.data.slicing import SliceView
from attnseg.data.store import StoredCase
from attnseg.metrics.calibration import Calibration
from attnseg.models.model import SegmentationModel
from attnseg.predict import decision

Pipeline = Literal["native", "zoom", "network_size"]
Volume = NDArray[np.bool_]

DESCRIBED = {
    "native": "logits resized to the native size, bilinear, then decided per pixel",
    "zoom": "as TransUNet's code: slices zoomed to the network's size by cubic splines, argmax, "
    "labels zoomed back by nearest neighbour",
    "network_size": "as BCDU-Net's code: truth resized to the network's size, bilinear, above 0.5",
}


@torch.inference_mode()
def predict(
    model: SegmentationModel,
    case: StoredCase,
    view: SliceView,
    labels: Labels,
    batch_size: int,
    calibration: Calibration | None = None,
) -> Volume:
    """Segment one case.

    Logits, not masks, are resized to the native size: bilinear, then the decision per pixel.

    Args:
        model: in evaluation mode, on the device to use.
        case: prepared.
        view: how slices become the network's input.
        labels: foreground classes.
        batch_size: slices at a time.
        calibration: told of every probability, at the network's size.

    Returns:
        Masks `[classes, S, H, W]` at the case's own size.
    """
    parts = []
    for start in range(0, case.shape[0], batch_size):
        indices = range(start, min(start + batch_size, case.shape[0]))
        logits = _logits(model, [view.image(case, index) for index in indices])
        if calibration is not None:
            probability = logits.sigmoid() if labels.overlapping else logits.softmax(1)[:, 1:]
            true = labels.split(np.stack([view.mask(case, index) for index in indices]))
            calibration.update(probability.cpu(), torch.from_numpy(true).transpose(0, 1))
        native = decision.to_size(logits.cpu().numpy(), case.shape[1:])
        parts.append(labels.decide(native))
    return np.concatenate(parts, 1)


@torch.inference_mode()
def predict_zoomed(
    model: SegmentationModel, case: StoredCase, view: SliceView, labels: Labels, batch_size: int
) -> Volume:
    """Segment one case as TransUNet's and DAE-Former's published code; see `predict`."""
    factors = (view.size[0] / case.shape[1], view.size[1] / case.shape[2])
    parts = []
    for start in range(0, case.shape[0], batch_size):
        images = []
        for index in range(start, min(start + batch_size, case.shape[0])):
            stacked = np.concatenate(case.scaled(view.neighbours(case, index)), -1)
            images.append(ndimage.zoom(stacked, (*factors, 1), order=3))
        masks = labels.decide(_logits(model, images).cpu().numpy())
        back = (1, 1, 1 / factors[0], 1 / factors[1])
        parts.append(ndimage.zoom(masks.astype(np.uint8), back, order=0).astype(bool))
    return np.concatenate(parts, 1)


@torch.inference_mode()
def compare_at_network_size(
    model: SegmentationModel, case: StoredCase, view: SliceView, labels: Labels, batch_size: int
) -> tuple[Volume, Volume]:
    """Return truth and prediction `[classes, S, *view.size]` at the network's size."""
    parts = []
    for start in range(0, case.shape[0], batch_size):
        indices = range(start, min(start + batch_size, case.shape[0]))
        logits = _logits(model, [view.image(case, index) for index in indices])
        parts.append(labels.decide(logits.cpu().numpy()))
    prediction = np.concatenate(parts, 1)
    truth = labels.split(case.mask).astype(np.float32)
    shrunk = [[cv2.resize(plane, view.size[::-1]) > 0.5 for plane in planes] for planes in truth]
    return np.array(shrunk), prediction


def compare(
    pipeline: Pipeline,
    model: SegmentationModel,
    case: StoredCase,
    view: SliceView,
    labels: Labels,
    batch_size: int,
    calibration: Calibration | None = None,
) -> tuple[Volume, Volume]:
    """Return truth and prediction as a pipeline compares them; arguments as for `predict`."""
    if pipeline == "network_size":
        return compare_at_network_size(model, case, view, labels, batch_size)
    if pipeline == "zoom":
        prediction = predict_zoomed(model, case, view, labels, batch_size)
    else:
        prediction = predict(model, case, view, labels, batch_size, calibration)
    return labels.split(case.mask), prediction


def _logits(model: SegmentationModel, images: list[NDArray[np.float32]]) -> torch.Tensor:
    device = next(model.parameters()).device
    batch = torch.stack([network_tensor(image) for image in images]).to(device)
    logits: torch.Tensor = model(batch)
    return logits.float()
