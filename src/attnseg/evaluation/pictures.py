"""Keeps small pictures of scored cases, so that runs can be viewed side by side without the data.

`pictures/` holds, for each slice, the image as JPEG and the masks as PNG files whose pixels are as
in `Case.mask`: class indices, or bits where classes overlap. `index.json` lists them, and is
written last. The truth alone determines the slices, so all variants show the same ones.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from attnseg.data.labels import Labels, Masks
from attnseg.data.store import StoredCase
from attnseg.drawing.cases import pixel_aspect, slice_image
from attnseg.files import write_json
from attnseg.prediction.overlay import slices_to_show

LONGEST = 256  # pixels along the longer side
QUALITY = 85  # of JPEG: artefacts are hardly visible, and files are a sixth of a PNG's size


class Pictures:
    """Writes the pictures of one run into a folder, which is created if missing."""

    def __init__(self, folder: Path, split: str, labels: Labels) -> None:
        self.folder = folder
        self.labels = labels
        self.index: dict[str, Any] = {
            "split": split,
            "classes": list(labels.names),
            "overlapping": labels.overlapping,
            "cases": [],
        }
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, case: StoredCase, truth: Masks, prediction: Masks) -> None:
        """Write the slices of one case; masks are `[classes, S, H, W]`."""
        number, slices = len(self.index["cases"]), []
        size = _size(case)
        for at in slices_to_show(truth):
            # The case's name may hold characters that no file name can.
            name = f"{number:04}-{at:04}"
            image = cv2.resize(slice_image(case, at), size, interpolation=cv2.INTER_AREA)
            pixels = np.rint(image * 255).astype(np.uint8)
            Image.fromarray(pixels).save(self.folder / f"{name}-image.jpg", quality=QUALITY)
            for what, masks in (("truth", truth), ("prediction", prediction)):
                merged = self.labels.merge(masks[:, at])
                mask = cv2.resize(merged, size, interpolation=cv2.INTER_NEAREST_EXACT)
                Image.fromarray(mask).save(self.folder / f"{name}-{what}.png", optimize=True)
            slices.append({"slice": at + 1, "name": name})
        self.index["cases"].append(
            {"case": case.case, "patient": case.patient, "of": case.shape[0], "slices": slices}
        )

    def close(self) -> None:
        """Write the index of all pictures."""
        write_json(self.folder / "index.json", self.index)


def _size(case: StoredCase) -> tuple[int, int]:
    """Return width and height of a slice's picture, with square pixels and never enlarged."""
    height, width = case.shape[1] * pixel_aspect(case), float(case.shape[2])
    shrink = min(1.0, LONGEST / max(height, width))
    return max(1, round(width * shrink)), max(1, round(height * shrink))
