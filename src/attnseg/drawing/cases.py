"""Drawings of prepared cases with their masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from attnseg.data.labels import Masks
from attnseg.data.store import StoredCase
from attnseg.prediction.overlay import COLOURS


def draw_comparison(
    path: Path,
    title: str,
    case: StoredCase,
    slices: Sequence[int],
    truth: Masks,
    prediction: Masks,
    classes: Sequence[str],
) -> None:
    """Draw slices of a case, each as image, truth and prediction side by side.

    Args:
        path: path of the PNG file.
        title: text above the picture.
        case: prepared case.
        slices: numbers of the n slices to draw.
        truth: true masks of these slices, `[classes, n, H, W]`.
        prediction: predicted masks of these slices, `[classes, n, H, W]`.
        classes: names of the classes.
    """
    aspect = pixel_aspect(case)
    ratio = case.shape[1] * aspect / case.shape[2]
    figure = Figure(figsize=(9, 3.1 * ratio * len(slices) + 0.9), dpi=100, layout="constrained")
    axes = figure.subplots(len(slices), 3, squeeze=False)
    for number, (row, index) in enumerate(zip(axes, slices, strict=True)):
        image = slice_image(case, index)
        for axis, masks in zip(row, (None, truth[:, number], prediction[:, number]), strict=True):
            draw_slice(axis, image, masks, aspect)
        row[0].set_ylabel(f"slice {index + 1}")
    for axis, name in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(name, fontsize=10)
    draw_class_legend(figure, classes)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, metadata={"Software": None})


def draw_slice(axis: Any, image: NDArray[Any], masks: Masks | None, ratio: float) -> None:  # noqa: ANN401
    """Draw a slice, from `slice_image`, with its masks on an axis of matplotlib.

    The masks are `[classes, H, W]`, `None` for the bare image; `ratio` is the height of a pixel
    over its width.
    """
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=ratio)
    axis.set_xticks([])
    axis.set_yticks([])
    for k, mask in enumerate(() if masks is None else masks):
        if mask.any():
            colour = COLOURS[k % len(COLOURS)]
            axis.contourf(mask.astype(float), [0.5, 1.5], colors=[colour], alpha=0.35)
            axis.contour(mask.astype(float), [0.5], colors=[colour], linewidths=1.2)


def slice_image(case: StoredCase, index: int) -> NDArray[np.float32]:
    """Return a slice in [0, 1]: `[H, W, 3]` for three channels, else the first one `[H, W]`."""
    scaled = case.scaled(index)
    return scaled if scaled.shape[-1] == 3 else scaled[..., 0]


def pixel_aspect(case: StoredCase) -> float:
    """Return the height of a pixel over its width."""
    return 1.0 if case.spacing is None else case.spacing[1] / case.spacing[2]


def draw_class_legend(figure: Figure, classes: Sequence[str]) -> None:
    """Add a legend of the classes' colours below a figure."""
    handles = [Patch(color=COLOURS[k % len(COLOURS)], label=n) for k, n in enumerate(classes)]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(classes), 5), frameon=False
    )


def fullest_slice(case: StoredCase) -> int:
    """Return the number of the slice with most classes; among equals, the one with most pixels."""
    present = (case.counts > 0).sum(1)
    return int(np.lexsort((case.counts.sum(1), present))[-1])
