"""Pictures of attention: a slice, the chosen point, and what its token takes in every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from attnseg.data.labels import Masks
from attnseg.drawing.cases import draw_class_legend
from attnseg.explain.attention_maps import Reach, Site, scores
from attnseg.files import replacing
from attnseg.predict.overlay import COLOURS

COLUMNS = 6  # panels in a row
PANEL = 2.2  # inches
MAP = colormaps["inferno"]
SIGNED = colormaps["RdBu_r"]
SCORES = 256  # tokens of a matrix of scores, at most


@dataclass(frozen=True)
class Scene:
    """What is looked at.

    Attributes:
        title: names it.
        image: the slice in [0, 1], `[H, W]` or `[H, W, 3]`.
        masks: the truth, `[classes, H, W]`.
        classes: their names.
        aspect: height of a pixel over its width.
        point: row and column of the chosen pixel.
    """

    title: str
    image: NDArray[np.float32]
    masks: Masks
    classes: tuple[str, ...]
    aspect: float
    point: tuple[int, int]


@dataclass(frozen=True)
class Drawn:
    """A run's layers, and what the chosen token takes in each, by name."""

    label: str
    sites: Mapping[str, Site]
    found: Mapping[str, Reach]


def draw_maps(path: Path, scene: Scene, runs: Sequence[Drawn]) -> None:
    """Draw the mean over heads for every layer: a group of rows per run.

    Where channels are mixed, the matrices of all heads are drawn instead.
    """
    figure, groups = _groups(scene, runs, [len(run.sites) + 1 for run in runs])
    for run, axes in zip(runs, groups, strict=True):
        first, *rest = axes
        _slice(first, scene)
        first.set_title("slice", fontsize=8)
        for axis, (name, site) in zip(rest, run.sites.items(), strict=False):
            _layer(axis, scene, site, run.found[name], None)
            axis.set_title(name, fontsize=8 if len(name) < 24 else 6.5)
    _finish(figure, path, scene, "mean over heads")


def draw_heads(path: Path, scene: Scene, runs: Sequence[Drawn]) -> None:
    """Draw every head of every layer: a group of rows per run."""
    panels = [
        [(name, head) for name, site in run.sites.items() for head in range(site.q.shape[1])]
        for run in runs
    ]
    figure, groups = _groups(scene, runs, [len(found) for found in panels])
    for run, found, axes in zip(runs, panels, groups, strict=True):
        for axis, (name, head) in zip(axes, found, strict=False):
            _layer(axis, scene, run.sites[name], run.found[name], head)
            axis.set_title(f"{name}, {head + 1}", fontsize=8 if len(name) < 22 else 6)
    _finish(figure, path, scene, "head by head")


def draw_scores(path: Path, scene: Scene, runs: Sequence[Drawn]) -> None:
    """Draw the scores Q K^T of every layer, mean over heads; none where grids differ."""
    matrices = [
        {
            name: matrix
            for name, site in run.sites.items()
            if (matrix := scores(site, SCORES)) is not None
        }
        for run in runs
    ]
    figure, groups = _groups(scene, runs, [len(found) for found in matrices], square=True)
    for found, axes in zip(matrices, groups, strict=True):
        for axis, (name, matrix) in zip(axes, found.items(), strict=False):
            values = matrix.numpy()
            limit = np.abs(values).max()
            axis.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
            axis.set_title(name, fontsize=8 if len(name) < 24 else 6.5)
            axis.set_xlabel(f"keys, left to right; up to {limit:.2g}", fontsize=7)
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), SIGNED), ax=figure.axes, shrink=0.5, pad=0.01, aspect=25
    )
    bar.set_label("score, as a share of the panel's largest", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(f"Scores Q K^T, mean over heads: {scene.title}", fontsize=10)
    _save(figure, path)


def paint(weights: NDArray[np.float32], site: Site, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Lay weights of the grid's keys `[m]` over a slice: each pixel has its nearest key's.

    Args:
        weights: in row-major order.
        site: where they are from.
        shape: H and W of the slice.

    Returns:
        `[H, W]`.
    """
    nearest = []
    for pixels, tokens, keys in zip(shape, site.grid, site.key_grid, strict=True):
        # In query tokens; keys stand at the centres of every stride-th one.
        at = (np.arange(pixels) + 0.5) * tokens / pixels - 0.5
        nearest.append(np.floor(at / site.stride + 0.5).astype(int).clip(0, keys - 1))
    painted: NDArray[np.float32] = weights.reshape(site.key_grid)[np.ix_(*nearest)]
    return painted


def mosaic(matrices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay square matrices `[h, d, d]` out beside and below each other, with gaps of NaN."""
    count, size = len(matrices), matrices.shape[1]
    across = int(np.ceil(np.sqrt(count)))
    down, gap = -(-count // across), max(1, size // 16)
    sheet = np.full((down * (size + gap) - gap, across * (size + gap) - gap), np.nan, np.float32)
    for at, matrix in enumerate(matrices):
        top, left = (place * (size + gap) for place in divmod(at, across))
        sheet[top : top + size, left : left + size] = matrix
    return sheet


def _groups(
    scene: Scene, runs: Sequence[Drawn], counts: Sequence[int], square: bool = False
) -> tuple[Figure, list[list[Any]]]:
    """Return a figure and, for each run, as many axes as asked for."""
    columns = max(1, min(COLUMNS, max(counts)))
    rows = [max(1, -(-count // columns)) for count in counts]
    ratio = 1.0 if square else scene.image.shape[0] * scene.aspect / scene.image.shape[1]
    size = (columns * PANEL + 1.2, sum(rows) * (PANEL * ratio + 0.42) + 0.8)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = list(figure.subplots(sum(rows), columns, squeeze=False))
    groups = []
    for run, down, count in zip(runs, rows, counts, strict=True):
        group = [axis for _ in range(down) for axis in axes.pop(0)]
        for axis in group:
            axis.set_xticks([])
            axis.set_yticks([])
        for axis in group[count:]:
            axis.set_axis_off()
        group[0].set_ylabel(run.label, fontsize=9, fontweight="bold")
        groups.append(group)
    return figure, groups


def _slice(axis: Any, scene: Scene) -> None:  # noqa: ANN401
    axis.imshow(scene.image, cmap="gray", vmin=0, vmax=1, aspect=scene.aspect)
    _marks(axis, scene, COLOURS)


def _marks(axis: Any, scene: Scene, colours: Sequence[str]) -> None:  # noqa: ANN401
    """Draw the true contours and the point."""
    for k, mask in enumerate(scene.masks):
        if mask.any():
            colour = colours[k % len(colours)]
            axis.contour(mask.astype(float), [0.5], colors=[colour], linewidths=1.0)
    row, column = scene.point
    axis.plot(
        column, row, "+", color="white", markersize=9, markeredgewidth=1.6,
        path_effects=[withStroke(linewidth=3.2, foreground="black")],
    )  # fmt: skip


def _layer(axis: Any, scene: Scene, site: Site, found: Reach, head: int | None) -> None:  # noqa: ANN401
    """Draw one map: of a head, or the mean of all."""
    weights = found.weights.float().numpy()
    if found.kind == "channels":
        shown = mosaic(weights if head is None else weights[head : head + 1])
        axis.imshow(shown, cmap=MAP, vmin=0, vmax=np.nanmax(shown), interpolation="nearest")
        width = weights.shape[1]
        _caption(axis, float(np.nanmax(shown)), width, f"{width} x {width} channels, ")
        return
    own = weights[:, site.prefix :]
    own = own.mean(0) if head is None else own[head]
    most = float(own.max())
    axis.imshow(scene.image, cmap="gray", vmin=0, vmax=1, aspect=scene.aspect)
    shape = (scene.image.shape[0], scene.image.shape[1])
    # Opaque where much is taken; the slice shows through where little is.
    axis.imshow(
        paint(own, site, shape), cmap=MAP, vmin=0, vmax=most, alpha=0.72, aspect=scene.aspect
    )
    _marks(axis, scene, ("white",))
    _caption(axis, most, weights.shape[1], "{}x{} keys, ".format(*site.key_grid))


def _caption(axis: Any, most: float, count: int, before: str) -> None:  # noqa: ANN401
    axis.set_xlabel(f"{before}up to {100 * most:.2g} %, {most * count:.1f} x uniform", fontsize=6.5)


def _finish(figure: Figure, path: Path, scene: Scene, how: str) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), MAP), ax=figure.axes, shrink=0.5, pad=0.01, aspect=25
    )
    bar.set_label("weight, as a share of the panel's largest", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    draw_class_legend(figure, scene.classes)
    figure.suptitle(
        f"Where the token at + attends, {how}: {scene.title}, pixel {list(scene.point)}",
        fontsize=10,
    )
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
