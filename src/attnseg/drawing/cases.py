"""Pictures of predictions: image, truth and prediction side by side."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from attnseg.data.labels import Masks
from attnseg.data.store import StoredCase
from attnseg.predict.overlay import COLOURS, slices_to_show


def draw(
    path: Path,
    title: str,
    case: StoredCase,
    truth: Masks,
    prediction: Masks,
    classes: tuple[str, ...],
) -> None:
    """Write one case's picture: slices with much to see, each as image, truth and prediction.

    Args:
        path: of the PNG file.
        title: above the picture.
        case: prepared.
        truth: `[classes, S, H, W]`.
        prediction: `[classes, S, H, W]`.
        classes: names.
    """
    chosen = slices_to_show(truth)
    ratio = case.shape[1] * aspect(case) / case.shape[2]
    figure = Figure(figsize=(9, 3.1 * ratio * len(chosen) + 0.9), dpi=100, layout="constrained")
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    for row, index in zip(axes, chosen, strict=True):
        for axis, masks in zip(row, (None, truth, prediction), strict=True):
            show(
                axis, picture(case, index), None if masks is None else masks[:, index], aspect(case)
            )
        row[0].set_ylabel(f"slice {index + 1}")
    for axis, name in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(name, fontsize=10)
    legend(figure, classes)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, metadata={"Software": None})


def show(axis: Any, shown: NDArray[Any], masks: Masks | None, ratio: float) -> None:  # noqa: ANN401
    """Draw a picture with its masks.

    Args:
        axis: of matplotlib.
        shown: from `picture`.
        masks: `[classes, H, W]`; `None` for the bare picture.
        ratio: height of a pixel over its width.
    """
    axis.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect=ratio)
    axis.set_xticks([])
    axis.set_yticks([])
    for k, mask in enumerate(() if masks is None else masks):
        if mask.any():
            colour = COLOURS[k % len(COLOURS)]
            axis.contourf(mask.astype(float), [0.5, 1.5], colors=[colour], alpha=0.35)
            axis.contour(mask.astype(float), [0.5], colors=[colour], linewidths=1.2)


def picture(case: StoredCase, index: int) -> NDArray[np.float32]:
    """Return a slice in [0, 1] to look at: `[H, W, 3]` if it has three channels, else the first."""
    scaled = case.scaled(index)
    return scaled if scaled.shape[-1] == 3 else scaled[..., 0]


def aspect(case: StoredCase) -> float:
    """Return the height of a pixel over its width."""
    return 1.0 if case.spacing is None else case.spacing[1] / case.spacing[2]


def legend(figure: Figure, classes: tuple[str, ...]) -> None:
    """Name the classes' colours below a figure."""
    handles = [Patch(color=COLOURS[k % len(COLOURS)], label=n) for k, n in enumerate(classes)]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(classes), 5), frameon=False
    )


def fullest(case: StoredCase) -> int:
    """Return the slice with most classes, the one with most of them if several have."""
    present = (case.counts > 0).sum(1)
    return int(np.lexsort((case.counts.sum(1), present))[-1])
