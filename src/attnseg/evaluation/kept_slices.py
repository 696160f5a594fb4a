"""Predictions kept for pictures while cases are scored, so that no case is segmented twice."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnseg.data.labels import Labels, Masks
from attnseg.data.store import StoredCase
from attnseg.drawing.cases import draw_comparison
from attnseg.prediction.overlay import slices_to_show


@dataclass(frozen=True)
class _Kept:
    case: StoredCase
    slices: list[int]
    packed: bytes  # label maps of the prediction, compressed


class KeptSlices:
    """Keeps the predicted slices that a picture of each scored case would show.

    Which cases are drawn is only known when all are scored. A case's picture shows three slices at
    most; their label maps take a few kilobytes when compressed.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self._kept: dict[str, _Kept] = {}

    def add(self, case: StoredCase, truth: Masks, prediction: Masks) -> None:
        """Keep slices of a case; masks are `[classes, S, H, W]` at the case's own size."""
        slices = slices_to_show(truth)
        label_map = self.labels.merge(prediction[:, slices])
        self._kept[case.case] = _Kept(case, slices, zlib.compress(label_map.tobytes(), 1))

    def draw(self, path: Path, title: str, name: str) -> None:
        """Draw image, truth and prediction of each kept slice of a case into a PNG file."""
        kept = self._kept[name]
        case, slices = kept.case, kept.slices
        label_map = np.frombuffer(zlib.decompress(kept.packed), np.uint8)
        prediction = self.labels.split(label_map.reshape(len(slices), *case.shape[1:]))
        truth = self.labels.split(case.mask[slices])
        draw_comparison(path, title, case, slices, truth, prediction, self.labels.names)
