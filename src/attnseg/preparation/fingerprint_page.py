"""The fingerprint as a picture: plots of a dataset's properties, and sample slices with masks."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from attnseg.data.reader import Reader
from attnseg.data.store import PERCENTILES, StoredCase
from attnseg.drawing.cases import (
    draw_class_legend,
    draw_slice,
    fullest_slice,
    pixel_aspect,
    slice_image,
)
from attnseg.prediction.overlay import COLOURS
from attnseg.preparation.fingerprint import Fingerprint, class_volume, describe_counts

SAMPLES = 8
ROLE_COLOURS = {"train": "#0072B2", "val": "#E69F00", "test": "#D55E00"}


def draw_fingerprint(
    path: Path,
    title: str,
    reader: Reader,
    cases: Sequence[StoredCase],
    facts: Fingerprint,
    closed: Collection[str] = (),
) -> None:
    """Write the plots of a fingerprint to a PNG file; of `closed` cases no slices are shown."""
    figure = Figure(figsize=(13, 12.5), dpi=90, layout="constrained")
    figure.suptitle(f"{title}\n{describe_counts(facts)}", fontsize=13)
    grid = figure.add_gridspec(4, 12, height_ratios=(1, 1, 1.05, 1.05))
    _draw_sizes(figure.add_subplot(grid[0, :4]), cases)
    _draw_spacings(figure.add_subplot(grid[0, 4:8]), cases)
    _draw_roles(figure.add_subplot(grid[0, 8:]), facts)
    _draw_intensities(figure.add_subplot(grid[1, :4]), cases, reader.channels)
    _draw_volumes(figure.add_subplot(grid[1, 4:8]), reader, cases)
    _draw_positions(figure.add_subplot(grid[1, 8:]), reader, cases)
    open_cases = [case for case in cases if case.case not in closed]
    chosen = np.linspace(0, len(open_cases) - 1, min(SAMPLES, len(open_cases))).astype(int)
    for at, case in enumerate(open_cases[i] for i in chosen):
        axis = figure.add_subplot(grid[2 + at // 4, 3 * (at % 4) : 3 * (at % 4) + 3])
        _draw_sample(axis, reader, case)
    draw_class_legend(figure, reader.classes)
    figure.savefig(path, metadata={"Software": None})


def _draw_sizes(axis: Any, cases: Sequence[StoredCase]) -> None:  # noqa: ANN401
    axis.set(title="Size of the slices", xlabel="columns", ylabel="rows")
    places, numbers = np.unique([c.shape[:0:-1] for c in cases], axis=0, return_counts=True)
    axis.scatter(*places.T, s=20 + 180 * numbers / numbers.max(), alpha=0.6, color=COLOURS[6])
    if len(places) <= 6:
        for place, number in zip(places, numbers, strict=True):
            axis.annotate(f"  {number} cases", place, fontsize=8)
    axis.margins(0.25)


def _draw_spacings(axis: Any, cases: Sequence[StoredCase]) -> None:  # noqa: ANN401
    axis.set_title("Voxel size")
    known = np.array([c.spacing for c in cases if c.spacing is not None])
    if not len(known):
        axis.text(0.5, 0.5, "unknown: no distances in mm", ha="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(known))
    for at in range(3):
        axis.plot(at + jitter, known[:, at], "o", ms=4, alpha=0.5, color=COLOURS[6])
    axis.set_xticks(range(3), ("slices", "rows", "columns"))
    axis.set(ylabel="mm", ylim=(0, None))


def _draw_roles(axis: Any, facts: Fingerprint) -> None:  # noqa: ANN401
    axis.set_title("Split")
    if not facts["roles"]:
        axis.text(0.5, 0.5, "refused, see the terminal", ha="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    units, left = ("patients", "cases", "slices"), np.zeros(3)
    for role, colour in ROLE_COLOURS.items():
        numbers = facts["roles"].get(role, dict.fromkeys(units, 0))
        shares = np.array([numbers[unit] / facts["counts"][unit] for unit in units])
        axis.barh(range(3), shares, left=left, color=colour, label=role)
        for y, (share, unit) in enumerate(zip(shares, units, strict=True)):
            if share:
                middle = left[y] + share / 2
                axis.text(middle, y, numbers[unit], ha="center", va="center", color="white")
        left += shares
    axis.set_yticks(range(3), units)
    axis.set_xticks([])
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)


def _draw_intensities(axis: Any, cases: Sequence[StoredCase], channels: int) -> None:  # noqa: ANN401
    axis.set(title="Intensities, a line per case", xlabel="percentile", ylabel="value")
    for channel in range(channels):
        for at, case in enumerate(cases):
            label = f"channel {channel + 1}" if at == 0 and channels > 1 else None
            values = case.percentiles[channel]
            colour = COLOURS[(6, 5, 2, 3)[channel % 4]]
            axis.plot(PERCENTILES, values, color=colour, alpha=0.35, lw=1, label=label)
    if channels > 1:
        axis.legend(frameon=False)


def _draw_volumes(axis: Any, reader: Reader, cases: Sequence[StoredCase]) -> None:  # noqa: ANN401
    known = all(c.spacing is not None for c in cases)
    columns = []
    for k in range(len(reader.classes)):
        values = [
            class_volume(c, k) if known else 100 * c.voxels[k] / np.prod(c.shape) for c in cases
        ]
        columns.append([v for v in values if v])
    boxes = axis.boxplot(columns, widths=0.6, patch_artist=True, medianprops={"color": "black"})
    for at, box in enumerate(boxes["boxes"]):
        box.set_facecolor(COLOURS[at % len(COLOURS)])
    axis.set_xticks(range(1, len(columns) + 1), reader.classes, rotation=30, ha="right", fontsize=8)
    axis.set_title("Size of the classes, where present")
    axis.set_ylabel("ml" if known else "% of the picture")
    every = [value for column in columns for value in column]
    if every and max(every) > 30 * min(every):
        axis.set_yscale("log")


def _draw_positions(axis: Any, reader: Reader, cases: Sequence[StoredCase]) -> None:  # noqa: ANN401
    if not reader.volumetric:
        shares = [[c.voxels[k] > 0 for k in range(len(reader.classes))] for c in cases]
        axis.bar(reader.classes, 100 * np.mean(shares, 0), color=COLOURS[: len(reader.classes)])
        axis.set(title="Pictures with the class", ylabel="%", ylim=(0, 105))
        return
    steps = np.linspace(0, 1, 21)
    for k in range(len(reader.classes)):
        present = [
            np.interp(steps, np.linspace(0, 1, c.shape[0]), c.counts[:, k] > 0) for c in cases
        ]
        share = 100 * np.mean(present, 0)
        axis.plot(100 * steps, share, color=COLOURS[k % len(COLOURS)], lw=1.8)
    axis.set(title="Where the classes are", xlabel="place in the scan, %", ylabel="% of the scans")


def _draw_sample(axis: Any, reader: Reader, case: StoredCase) -> None:  # noqa: ANN401
    index = fullest_slice(case)
    truth = reader.labels.split(case.mask)
    draw_slice(axis, slice_image(case, index), truth[:, index], pixel_aspect(case))
    axis.set_title(f"{case.case}, slice {index + 1} of {case.shape[0]}", fontsize=9)
