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
from attnseg.prediction.overlay import COLOURS, magnify, outline_masks

DPI = 100
LEGEND_COLUMNS = 4
# The following are pixels.
PANEL = 320  # the longer side of a drawn slice
BORDER = 4  # white on each side of it
LEAST_PANEL = (84, 96)  # height and width that the names of slices and columns need
OUTLINE = 2
LEAST_WIDTH = 900  # that the title and the legend need


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
    rows = []
    for number, index in enumerate(slices):
        image = magnify(case.scaled(index), pixel_aspect(case), PANEL)
        shown = truth[:0, number], truth[:, number], prediction[:, number]  # at first no class
        panels = [outline_masks(image.copy(), masks, OUTLINE) for masks in shown]
        rows.append(np.hstack([_frame(panel) for panel in panels]))
    picture = np.vstack(rows)
    height, width = picture.shape[:2]
    lines = -(-len(classes) // LEGEND_COLUMNS)
    above, below = 46 + 18 * title.count("\n"), 10 + 22 * lines  # pixels
    left = max(24, (LEAST_WIDTH - width) // 2)
    full_width, full_height = max(left + width, LEAST_WIDTH), above + height + below
    figure = Figure(figsize=(full_width / DPI, full_height / DPI), dpi=DPI)
    figure.figimage(picture, left, below, origin="upper")
    for column, name in enumerate(("image", "truth", "prediction")):
        x = left + (column + 0.5) * width / 3
        figure.text(x / full_width, (below + height + 4) / full_height, name, ha="center")
    for row, index in enumerate(slices):
        y = below + height - (row + 0.5) * height / len(slices)
        place = (left - 4) / full_width, y / full_height
        figure.text(*place, f"slice {index + 1}", rotation=90, ha="right", va="center")
    draw_class_legend(figure, classes)
    figure.suptitle(title, fontsize=11, y=1 - 8 / full_height)
    figure.savefig(path, dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 3})


def _frame(panel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a drawn slice in the middle of white."""
    height, width = panel.shape[:2]
    rows = max(height + 2 * BORDER, LEAST_PANEL[0])
    columns = max(width + 2 * BORDER, LEAST_PANEL[1])
    framed = np.full((rows, columns, 3), 255, np.uint8)
    top, left = (rows - height) // 2, (columns - width) // 2
    framed[top : top + height, left : left + width] = panel
    return framed


def draw_slice(axis: Any, image: NDArray[Any], masks: Masks, ratio: float) -> None:  # noqa: ANN401
    """Draw a slice, from `slice_image`, with its masks on an axis of matplotlib.

    The masks are `[classes, H, W]`; `ratio` is the height of a pixel over its width.
    """
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=ratio)
    axis.set_xticks([])
    axis.set_yticks([])
    for k, mask in enumerate(masks):
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
        handles=handles,
        loc="outside lower center",
        ncols=min(len(classes), LEGEND_COLUMNS),
        frameon=False,
    )


def fullest_slice(case: StoredCase) -> int:
    """Return the number of the slice with most classes; among equals, the one with most pixels."""
    present = (case.counts > 0).sum(1)
    return int(np.lexsort((case.counts.sum(1), present))[-1])
