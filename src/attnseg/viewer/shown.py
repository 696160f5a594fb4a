"""A segmented image in the planes of the body, and drawings of its slices."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from attnseg.data.labels import Labels, Masks
from attnseg.data.readers.nifti import PLANES
from attnseg.data.slicing import scale_intensities
from attnseg.prediction.overlay import magnify, outline_masks
from attnseg.prediction.scan import Scan
from attnseg.prediction.segment import Segmented
from attnseg.prediction.spec import InferenceSpec

CERTAIN, UNDECIDED = 0, 255  # in `Shown.uncertainty`
UNDECIDED_COLOUR = (255, 45, 149)  # red, green, blue; no class has it
UNDECIDED_OPACITY = 0.85
FASTEST = 1  # of zlib's levels: the picture goes to this machine's browser only
Layer = Literal["masks", "uncertainty", "none"]


@dataclass(frozen=True)
class Shown:
    """An image with its masks, whose axes run to the patient's head, back and left.

    A picture is an image of one slice. Axes of files that do not say how the patient lies are as
    they are.

    Attributes:
        image: `[Z, Y, X, C]`.
        label_map: `[Z, Y, X]`, see `Labels`.
        uncertainty: `[Z, Y, X]`, from `CERTAIN` to `UNDECIDED`; `None` if it is not known.
        spacing: voxel size along Z, Y, X, mm; `None` if unknown.
        low: intensity that becomes 0, per channel.
        high: intensity that becomes 1, per channel.
        labels: the classes.
        oriented: whether the files say how the patient lies.
    """

    image: NDArray[Any]
    label_map: NDArray[np.uint8]
    uncertainty: NDArray[np.uint8] | None
    spacing: tuple[float, float, float] | None
    low: tuple[float, ...]
    high: tuple[float, ...]
    labels: Labels
    oriented: bool = False

    @classmethod
    def from_slices(cls, scan: Scan, segmented: Segmented, spec: InferenceSpec) -> Self:
        """Return a scan as it was segmented, in as little memory as it needs."""
        # Pictures and scans of pictures have no orientation that could be turned.
        plane = spec.plane if scan.affine is not None else "axial"
        order = np.argsort(PLANES[plane])[::-1]
        spacing = scan.spacing
        uncertainty = None
        if segmented.uncertainty is not None:
            steps = np.rint(segmented.uncertainty * UNDECIDED)
            uncertainty = steps.astype(np.uint8).transpose(order)
        return cls(
            scan.image.transpose(*order, 3),
            spec.labels.merge(segmented.masks).transpose(order),
            uncertainty,
            None if spacing is None else (spacing[order[0]], spacing[order[1]], spacing[order[2]]),
            scan.low,
            scan.high,
            spec.labels,
            scan.affine is not None,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of axial, coronal and sagittal slices."""
        return self.label_map.shape[0], self.label_map.shape[1], self.label_map.shape[2]

    def draw(
        self,
        axis: int,
        index: int,
        window: tuple[float, float],
        layer: Layer,
        hidden: Collection[int] = (),
    ) -> bytes:
        """Draw a slice as PNG, the head or else the front above, the patient's right at the left.

        Args:
            axis: 0 axial, 1 coronal, 2 sagittal.
            index: number of the slice.
            window: what becomes black and white, 0 being `low` and 1 `high`.
            layer: what is drawn over the image.
            hidden: numbers of the classes that are not drawn.
        """
        spacing = self.spacing or (1.0, 1.0, 1.0)
        tall = (spacing[1] / spacing[2], spacing[0] / spacing[2], spacing[0] / spacing[1])[axis]
        low, high = (
            tuple(zero + end * (one - zero) for zero, one in zip(self.low, self.high, strict=True))
            for end in window
        )
        drawn = magnify(scale_intensities(self._cut(self.image, axis, index), low, high), tall)
        if layer == "uncertainty" and self.uncertainty is not None:
            values = self._cut(self.uncertainty, axis, index).astype(np.float32)
            share = cv2.resize(values, drawn.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            opacity = UNDECIDED_OPACITY * np.asarray(share)[..., None] / UNDECIDED
            drawn += opacity * (np.array(UNDECIDED_COLOUR, np.float32) - drawn)
        masks = self.labels.split(self._cut(self.label_map, axis, index))
        masks[list(hidden) if layer == "masks" else slice(None)] = False
        picture = outline_masks(drawn, masks)
        _, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, FASTEST])
        return png.tobytes()

    def mask_of(self, name: str) -> Masks:
        """Return the mask `[Z, Y, X]` of a class."""
        return self.labels.mask_of(self.label_map, self.labels.names.index(name))

    @staticmethod
    def _cut(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
        slices = np.moveaxis(volume, axis, 0)
        return np.asarray(slices[index][:: 1 if axis == 0 else -1])


def measure_agreement(first: Shown, second: Shown) -> dict[str, float | None]:
    """Return the Dice score between two masks of each class that both have.

    It is `None` where neither mask has a voxel.
    """
    scores: dict[str, float | None] = {}
    if first.shape != second.shape:
        return scores
    for name in first.labels.names:
        if name in second.labels.names:
            one, other = first.mask_of(name), second.mask_of(name)
            total = int(one.sum()) + int(other.sum())
            scores[name] = 2 * int((one & other).sum()) / total if total else None
    return scores
