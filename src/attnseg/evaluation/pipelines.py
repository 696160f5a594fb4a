"""Truth and prediction of a case as they are compared: our pipeline and two published ones."""

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from attnseg.data.labels import Floats, Masks
from attnseg.data.slicing import network_input
from attnseg.data.store import StoredCase
from attnseg.metrics.calibration import Calibration
from attnseg.prediction.segment import Segmenter

Pipeline = Literal["native", "zoom", "network_size"]

DESCRIBED = {
    "native": "logits resized to the native size, bilinear, then decided per pixel",
    "zoom": "as TransUNet's code: slices zoomed to the network's size by cubic splines, argmax, "
    "labels zoomed back by nearest neighbour",
    "network_size": "as BCDU-Net's code: truth resized to the network's size, bilinear, above 0.5",
}


def segment_case(
    pipeline: Pipeline,
    segmenter: Segmenter,
    case: StoredCase,
    calibration: Calibration | None = None,
) -> tuple[Masks, Masks]:
    """Return truth and prediction of a case, `[classes, S, H, W]` each.

    Args:
        pipeline: how both are brought to one size: the case's own or, for `network_size`, the
            network's.
        segmenter: with one member, no flips and no tiles.
        case: prepared.
        calibration: updated with all probabilities at the network's size; for `native` only.

    Raises:
        CheckpointError: the network returns NaN or infinity.
    """
    if pipeline == "network_size":
        return _segment_at_network_size(segmenter, case)
    truth = segmenter.labels.split(case.mask)
    if pipeline == "zoom":
        return truth, _segment_zoomed(segmenter, case)

    def calibrate(at: slice, logits: Floats) -> None:
        if calibration is not None:
            _update_calibration(calibration, segmenter, case, at, logits)

    return truth, segmenter(case, on_logits=calibrate).masks


def _update_calibration(
    calibration: Calibration, segmenter: Segmenter, case: StoredCase, at: slice, logits: Floats
) -> None:
    """Add the slices of a batch, their truth resized to the network's size."""
    labels, (member,) = segmenter.labels, segmenter.members
    tensor = torch.from_numpy(logits)
    probability = tensor.sigmoid() if labels.overlapping else tensor.softmax(1)[:, 1:]
    indices = range(at.start, at.stop)
    label_map = np.stack([member.view.mask(case.mask[index]) for index in indices])
    truth = torch.from_numpy(labels.split(label_map)).transpose(0, 1)
    if (ignored := labels.find_ignored(label_map)) is not None:
        known = torch.from_numpy(~ignored)
        probability, truth = (x.movedim(1, -1)[known].T[None] for x in (probability, truth))
    calibration.update(probability, truth)


def _segment_zoomed(segmenter: Segmenter, case: StoredCase) -> Masks:
    """Segment a case as the published code of TransUNet and DAE-Former does."""
    (member,) = segmenter.members
    view = member.view
    factors = (view.size[0] / case.shape[1], view.size[1] / case.shape[2])
    back = (1, 1, 1 / factors[0], 1 / factors[1])

    def read_zoomed(index: int) -> NDArray[np.float32]:
        stacked = np.concatenate(case.scaled(view.neighbours(case, index)), -1)
        return network_input(ndimage.zoom(stacked, (*factors, 1), order=3))

    batches = []
    for at in segmenter.batches(case):
        images = np.stack([read_zoomed(index) for index in range(at.start, at.stop)])
        masks = segmenter.labels.decide(member.compute_logits(images))
        batches.append(ndimage.zoom(masks.astype(np.uint8), back, order=0).astype(bool))
    return np.concatenate(batches, 1)


def _segment_at_network_size(segmenter: Segmenter, case: StoredCase) -> tuple[Masks, Masks]:
    """Return truth and prediction `[classes, S, *view.size]` at the network's size."""
    labels, (member,) = segmenter.labels, segmenter.members
    decided = [
        labels.decide(member.compute_logits(member.read_slices(case, at)))
        for at in segmenter.batches(case)
    ]
    truth = labels.split(case.mask).astype(np.float32)
    size = member.view.size[::-1]
    shrunk = [[cv2.resize(plane, size) > 0.5 for plane in planes] for planes in truth]
    return np.array(shrunk), np.concatenate(decided, 1)
