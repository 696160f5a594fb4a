"""Pictures of attention: where the token of the chosen point attends in every layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.spatial import KDTree

from attnseg.data.labels import Masks
from attnseg.drawing.cases import draw_class_legend
from attnseg.explain.recording import AttentionRecord, TokenRecord, recorded_part
from attnseg.explain.run_attention import RunAttention
from attnseg.explain.spread import mean_scores
from attnseg.explain.token_weights import TokenWeights
from attnseg.files import replacing
from attnseg.prediction.overlay import COLOURS

PANELS_PER_ROW = 6
PANEL_INCHES = 2.2
WEIGHT_MAP = colormaps["inferno"]
SCORE_MAP = colormaps["RdBu_r"]
MAX_SCORE_TOKENS = 256  # Of more tokens, a matrix of scores shows a regular sample.


@dataclass(frozen=True)
class Scene:
    """The slice and the point of all pictures.

    Attributes:
        title: description of the slice.
        image: the slice in [0, 1], `[H, W]` or `[H, W, 3]`.
        masks: true masks, `[classes, H, W]`.
        classes: names of the classes.
        aspect: height of a pixel over its width.
        point: row and column of the chosen pixel.
    """

    title: str
    image: NDArray[np.float32]
    masks: Masks
    classes: tuple[str, ...]
    aspect: float
    point: tuple[int, int]


def draw_maps(path: Path, scene: Scene, runs: Sequence[RunAttention]) -> None:
    """Draw a map per layer, averaged over heads, with a group of rows per run.

    Where channels are mixed, the channel matrices of all heads are drawn instead.
    """
    figure, groups = _make_panels(scene, runs, [len(run.records) + 1 for run in runs])
    for run, axes in zip(runs, groups, strict=True):
        first, *rest = axes
        first.imshow(scene.image, cmap="gray", vmin=0, vmax=1, aspect=scene.aspect)
        _draw_contours_and_point(first, scene, COLOURS)
        first.set_title("slice", fontsize=8)
        for axis, (name, record) in zip(rest, run.records.items(), strict=False):
            _draw_layer_panel(axis, scene, record, run.weights[name], None)
            learned = recorded_part(record).diagnostics().items()
            title = ", ".join([name, *(f"{key} {value:.2f}" for key, value in learned)])
            axis.set_title(title, fontsize=8 if len(title) < 24 else 6.5)
    _finish_maps(figure, path, scene, "mean over heads")


def draw_heads(path: Path, scene: Scene, runs: Sequence[RunAttention]) -> None:
    """Draw a map per layer and head, with a group of rows per run."""
    heads_of_runs = [
        [(name, head) for name, record in run.records.items() for head in range(record.heads)]
        for run in runs
    ]
    figure, groups = _make_panels(scene, runs, [len(heads) for heads in heads_of_runs])
    for run, heads, axes in zip(runs, heads_of_runs, groups, strict=True):
        for axis, (name, head) in zip(axes, heads, strict=False):
            _draw_layer_panel(axis, scene, run.records[name], run.weights[name], head)
            axis.set_title(f"{name}, {head + 1}", fontsize=8 if len(name) < 22 else 6)
    _finish_maps(figure, path, scene, "head by head")


def draw_scores(path: Path, scene: Scene, runs: Sequence[RunAttention]) -> None:
    """Draw every attention's scores Q K^T, averaged over heads, if its queries are its keys."""
    scores_of_runs = [
        {
            name: scores
            for name, record in run.records.items()
            if isinstance(record, AttentionRecord)
            and (scores := mean_scores(record, MAX_SCORE_TOKENS)) is not None
        }
        for run in runs
    ]
    counts = [len(layers) for layers in scores_of_runs]
    figure, groups = _make_panels(scene, runs, counts, square=True)
    for layers, axes in zip(scores_of_runs, groups, strict=True):
        for axis, (name, scores) in zip(axes, layers.items(), strict=False):
            values = scores.numpy()
            limit = np.abs(values).max()
            axis.imshow(values, cmap=SCORE_MAP, vmin=-limit, vmax=limit)
            axis.set_title(name, fontsize=8 if len(name) < 24 else 6.5)
            axis.set_xlabel(f"keys, left to right; up to {limit:.2g}", fontsize=7)
    _add_colour_bar(figure, ScalarMappable(Normalize(-1, 1), SCORE_MAP), "score")
    figure.suptitle(f"Scores Q K^T, mean over heads: {scene.title}", fontsize=10)
    _save_png(figure, path)


def weights_as_image(
    weights: NDArray[np.float32], record: TokenRecord, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Return an image `[H, W]` in which each pixel has the weight of its nearest key.

    Args:
        weights: of the grid's keys in row-major order, `[h, keys]`; heads are averaged.
        record: tells where keys lie.
        shape: H, W.
    """
    nearest = _nearest_keys(record, shape)
    groups = weights.reshape(len(nearest), -1, weights.shape[1]).mean(1)
    images = [group[keys] for group, keys in zip(groups, nearest, strict=True)]
    image: NDArray[np.float32] = np.mean(images, 0)
    return image


def _nearest_keys(record: TokenRecord, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return the number of each pixel's nearest key of the grid, `[g, H, W]` for g groups."""
    layout = record.layout
    if layout.positions is None:
        axes = []
        first = layout.cell / 2 if layout.joined else 0.5  # centre, in tokens that became keys
        for pixels, tokens, keys in zip(shape, record.source, record.key_grid, strict=True):
            at = (np.arange(pixels) + 0.5) * tokens / pixels
            nearest = np.floor((at - first) / layout.cell + 0.5).astype(int)
            axes.append(nearest.clip(0, keys - 1))
        numbers: NDArray[np.int64] = (axes[0][:, None] * record.key_grid[1] + axes[1])[None]
        return numbers
    centres = np.moveaxis(np.indices(shape), 0, -1) + 0.5
    sites = record.key_centres((float(shape[0]), float(shape[1]))).numpy()
    return np.stack([KDTree(group).query(centres)[1] for group in sites])


def tile_matrices(matrices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return square matrices `[h, d, d]` as one image, in rows, with gaps of NaN."""
    count, size = len(matrices), matrices.shape[1]
    across = int(np.ceil(np.sqrt(count)))
    down, gap = -(-count // across), max(1, size // 16)
    sheet = np.full((down * (size + gap) - gap, across * (size + gap) - gap), np.nan, np.float32)
    for at, matrix in enumerate(matrices):
        top, left = (place * (size + gap) for place in divmod(at, across))
        sheet[top : top + size, left : left + size] = matrix
    return sheet


def _make_panels(
    scene: Scene, runs: Sequence[RunAttention], counts: Sequence[int], square: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and, for each run, a group of axes of which the first `counts` are shown."""
    columns = max(1, min(PANELS_PER_ROW, max(counts)))
    rows = [max(1, -(-count // columns)) for count in counts]
    ratio = 1.0 if square else scene.image.shape[0] * scene.aspect / scene.image.shape[1]
    size = (columns * PANEL_INCHES + 1.2, sum(rows) * (PANEL_INCHES * ratio + 0.42) + 0.8)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = list(figure.subplots(sum(rows), columns, squeeze=False))
    groups = []
    for run, row_count, count in zip(runs, rows, counts, strict=True):
        group = [axis for _ in range(row_count) for axis in axes.pop(0)]
        for axis in group:
            axis.set_xticks([])
            axis.set_yticks([])
        for axis in group[count:]:
            axis.set_axis_off()
        group[0].set_ylabel(run.label, fontsize=9, fontweight="bold")
        groups.append(group)
    return figure, groups


def _draw_contours_and_point(axis: Axes, scene: Scene, colours: Sequence[str]) -> None:
    for index, mask in enumerate(scene.masks):
        if mask.any():
            colour = colours[index % len(colours)]
            axis.contour(mask.astype(float), [0.5], colors=[colour], linewidths=1.0)
    row, column = scene.point
    axis.plot(
        column, row, "+", color="white", markersize=9, markeredgewidth=1.6,
        path_effects=[withStroke(linewidth=3.2, foreground="black")],
    )  # fmt: skip


def _draw_layer_panel(
    axis: Axes,
    scene: Scene,
    record: TokenRecord,
    token_weights: TokenWeights,
    head: int | None,
) -> None:
    """Draw the map of one head, or of the mean of all heads."""
    weights = token_weights.shares.float().numpy()
    if token_weights.kind == "channels":
        shown = tile_matrices(weights if head is None else weights[head : head + 1])
        largest, width = float(np.nanmax(shown)), weights.shape[1]
        axis.imshow(shown, cmap=WEIGHT_MAP, vmin=0, vmax=largest, interpolation="nearest")
        _caption(axis, largest, width, f"{width} x {width} channels, ")
        return
    height, width, *_ = scene.image.shape
    axis.imshow(scene.image, cmap="gray", vmin=0, vmax=1, aspect=scene.aspect)
    on_grid = weights[:, record.layout.key_prefix :]
    if on_grid.shape[1]:
        if head is not None:  # Every head stands for itself, with its own keys.
            on_grid = np.where(np.arange(len(on_grid))[:, None] == head, on_grid, 0) * len(on_grid)
        image = weights_as_image(on_grid, record, (height, width))
        largest = float(image.max())
        axis.imshow(image, cmap=WEIGHT_MAP, vmin=0, vmax=largest, alpha=0.72, aspect=scene.aspect)
        own = weights if head is None else weights[head : head + 1]
        reached = np.count_nonzero(own, 1).mean()
        _caption(axis, largest, reached, "{}x{} keys, ".format(*record.key_grid))
    _draw_contours_and_point(axis, scene, ("white",))


def _caption(axis: Axes, largest: float, count: float, size: str) -> None:
    text = f"{size}up to {100 * largest:.2g} %, {largest * count:.1f} x uniform"
    axis.set_xlabel(text, fontsize=6.5)


def _finish_maps(figure: Figure, path: Path, scene: Scene, how: str) -> None:
    _add_colour_bar(figure, ScalarMappable(Normalize(0, 1), WEIGHT_MAP), "weight")
    draw_class_legend(figure, scene.classes)
    title = f"Where the token at + attends, {how}: {scene.title}, pixel {list(scene.point)}"
    figure.suptitle(title, fontsize=10)
    _save_png(figure, path)


def _add_colour_bar(figure: Figure, colours: ScalarMappable, quantity: str) -> None:
    bar = figure.colorbar(colours, ax=figure.axes, shrink=0.5, pad=0.01, aspect=25)
    bar.set_label(f"{quantity}, as a share of the panel's largest", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _save_png(figure: Figure, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
