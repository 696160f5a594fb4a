"""Pictures of predictions: image, truth and prediction side by side."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2", "#999999")
SLICES = 3


def draw(
    path: Path,
    title: str,
    image: NDArray[Any],
    truth: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    classes: tuple[str, ...],
    spacing: tuple[float, float, float],
) -> None:
    """Write one case's picture: slices with much to see, each as image, truth and prediction.

    Args:
        path: of the PNG file.
        title: above the picture.
        image: `[S, H, W, C]`; the first channel is shown.
        truth: `[classes, S, H, W]`.
        prediction: `[classes, S, H, W]`.
        classes: names.
        spacing: voxel size along S, H, W, mm.
    """
    chosen = _slices_to_show(truth)
    aspect = spacing[1] / spacing[2]
    ratio = image.shape[1] * aspect / image.shape[2]
    figure = Figure(figsize=(9, 3.1 * ratio * len(chosen) + 0.9), dpi=100, layout="constrained")
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    high = float(np.percentile(image, 99.5))
    for row, index in zip(axes, chosen, strict=True):
        for axis, masks in zip(row, (None, truth, prediction), strict=True):
            axis.imshow(image[index, ..., 0], cmap="gray", vmin=0, vmax=high, aspect=aspect)
            axis.set_xticks([])
            axis.set_yticks([])
            for k in range(len(classes)):
                if masks is not None and masks[k, index].any():
                    colour = COLOURS[k % len(COLOURS)]
                    fill = masks[k, index].astype(float)
                    axis.contourf(fill, [0.5, 1.5], colors=[colour], alpha=0.35)
                    axis.contour(fill, [0.5], colors=[colour], linewidths=1.2)
        row[0].set_ylabel(f"slice {index + 1}")
    for axis, name in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(name, fontsize=10)
    handles = [Patch(color=COLOURS[k % len(COLOURS)], label=n) for k, n in enumerate(classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(classes), frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, metadata={"Software": None})


def _slices_to_show(truth: NDArray[np.bool_]) -> list[int]:
    """Return up to `SLICES` slices in order: what shows most in each third of the organs."""
    area = truth.sum((2, 3)).astype(float)
    # Each class counts the same, however large it is.
    seen = (area / np.maximum(area.max(1, keepdims=True), 1)).sum(0)
    filled = np.flatnonzero(seen)
    if filled.size == 0:
        return [truth.shape[1] // 2]
    parts = np.array_split(filled, min(SLICES, filled.size))
    return [int(part[seen[part].argmax()]) for part in parts]
