"""Slices of the scored cases, small, so that runs can be looked at side by side without the data.

`pictures/` holds, for each slice, the image as JPEG and the masks as PNG files whose pixels are as
in `Case.mask`: class indices, or bits where classes overlap. `index.json` says what is what, and is
written last. The slices follow from the truth alone: all variants show the same ones.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from attnseg.data.labels import Labels, Masks
from attnseg.data.store import StoredCase
from attnseg.drawing.cases import pixel_aspect, slice_image
from attnseg.files import write_text
from attnseg.predict.overlay import slices_to_show

LONGEST = 256  # pixels of a side
QUALITY = 85  # of JPEG: hardly seen in a slice, a sixth of a PNG file


class Pictures:
    """The pictures of one run.

    Args:
        folder: is made.
        split: what the cases are.
        labels: foreground classes.
    """

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
        """Keep the slices of one case.

        Args:
            case: prepared.
            truth: `[classes, S, H, W]`.
            prediction: `[classes, S, H, W]`.
        """
        number, slices = len(self.index["cases"]), []
        width, height = _size(case)
        for at in slices_to_show(truth):
            # Not by the case's name, which may hold anything.
            name = f"{number:04}-{at:04}"
            image = cv2.resize(slice_image(case, at), (width, height), interpolation=cv2.INTER_AREA)
            pixels = np.rint(image * 255).astype(np.uint8)
            Image.fromarray(pixels).save(self.folder / f"{name}-image.jpg", quality=QUALITY)
            for what, masks in (("truth", truth), ("prediction", prediction)):
                mask = cv2.resize(
                    self.labels.merge(masks[:, at]),
                    (width, height),
                    interpolation=cv2.INTER_NEAREST_EXACT,
                )
                Image.fromarray(mask).save(self.folder / f"{name}-{what}.png", optimize=True)
            slices.append({"slice": at + 1, "name": name})
        self.index["cases"].append(
            {"case": case.case, "patient": case.patient, "of": case.shape[0], "slices": slices}
        )

    def close(self) -> None:
        """Write what is there."""
        write_text(self.folder / "index.json", json.dumps(self.index, indent=1) + "\n")


def _size(case: StoredCase) -> tuple[int, int]:
    """Return width and height that a slice is kept at: pixels square, never enlarged."""
    height, width = case.shape[1] * pixel_aspect(case), float(case.shape[2])
    shrink = min(1.0, LONGEST / max(height, width))
    return max(1, round(width * shrink)), max(1, round(height * shrink))
