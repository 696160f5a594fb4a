"""Figures of a comparison, as PNG files and as SVG in the colours of the page."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from attnseg.errors import DataError
from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant
from attnseg.study.canvas import (
    PALETTE,
    STYLE,
    Curve,
    draw_line,
    draw_point,
    draw_points,
    new_figure,
    shorten_name,
)
from attnseg.study.comparison import Comparison
from attnseg.study.contrasts import ATTENTION, Claim, Contrast
from attnseg.study.verdict import ABOUT
from attnseg.study.wording import count_text, interval_text

AXIS_LABEL_LENGTH = 48  # characters of a line below an axis
VARIANT_COLOURS = 6  # in the style sheet; further variants reuse them with other dashes
DASHES: tuple[tuple[float, ...], ...] = ((), (7, 5), (1.5, 5))  # lengths on and off
HISTORIES = {"val/dice": "{watched} Dice", "train/loss": "training loss"}


@rc_context(STYLE)
def write_figures(comparison: Comparison, folder: Path) -> None:
    """Write each figure as a PNG file, titled and marked like the tables."""
    mark = "" if comparison.watermark is None else f"\n{comparison.watermark}"
    drawings = {
        "forest": draw_forest,
        "patients": draw_patients,
        "seeds": draw_seeds,
        "pareto": draw_pareto,
    }
    for name, draw in drawings.items():
        figure = draw(comparison)
        figure.suptitle(comparison.title + mark, fontsize=9, wrap=True)
        figure.set_figheight(figure.get_figheight() + 0.4)
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})


@rc_context(STYLE)
def draw_forest(comparison: Comparison) -> Figure:
    """Draw each variant's difference from the baseline, over the margin of equivalence.

    Each claim has its two deciding intervals: a thick line for a difference, below it a thin, pale
    one with ends for equivalence. The claim about attentions is coloured, that about these networks
    grey; a filled point is a difference that was shown.
    """
    rows = comparison.against
    figure, axes = _new_difference_figure(comparison, 92 + 62 * len(rows))
    for at, c in enumerate(rows):
        claims = [c.networks] if min(c.seeds) < 2 else [c.attention, c.networks]
        for claim, place in zip(claims, (-0.2, 0.2)[-len(claims) :], strict=True):
            _draw_claim(axes, comparison, c, claim, at + place)
    _name_rows(axes, [c.variant for c in rows])
    return figure


def _draw_claim(axes: Axes, comparison: Comparison, c: Contrast, claim: Claim, y: float) -> None:
    metric, colour = comparison.metric, "accent" if claim.of == ATTENTION else "soft"
    interval = interval_text(claim.simultaneous_low, claim.simultaneous_high, metric)
    tooltip = f"{c.variant}, {ABOUT[claim.of]}: {metric.text(c.difference)}, "
    tooltip += f"corrected interval {interval}"
    ends = [(claim.simultaneous_low, y), (claim.simultaneous_high, y)]
    draw_line(axes, ends, colour, 4.5, tooltip, cap="butt")
    draw_point(axes, c.difference, y, colour, colour if claim.different else "paper", tooltip)
    if comparison.margin is not None and claim.equivalence_low == claim.equivalence_low:
        interval = interval_text(claim.equivalence_low, claim.equivalence_high, metric)
        level = f"{100 * (1 - 2 * c.alpha):g} %"
        tooltip = f"{c.variant}, {ABOUT[claim.of]}: {level} interval of equivalence {interval}"
        ends = [(claim.equivalence_low, y + 0.17), (claim.equivalence_high, y + 0.17)]
        draw_line(axes, ends, colour, 1.4, tooltip, alpha=0.5, marker="|")


@rc_context(STYLE)
def draw_patients(comparison: Comparison) -> Figure:
    """Draw the difference of every patient from the baseline as a dot, and the mean as a line."""
    figure, axes = _new_difference_figure(comparison, 92 + 48 * len(comparison.against))
    # The heights only keep the dots apart; every comparison of the same patients has the same.
    for at, (c, pair) in enumerate(zip(comparison.against, comparison.values, strict=True)):
        differences = pair.differences
        heights = at + 0.3 * np.random.default_rng(0).uniform(-1, 1, len(differences))
        text = comparison.metric.text
        ends = f"{text(differences.min())} to {text(differences.max())}"
        tooltip = f"{c.variant}: {count_text(len(differences), 'patient')}, from {ends}"
        draw_points(axes, differences, heights, "accent", tooltip)
        mean = [(c.difference, at - 0.4), (c.difference, at + 0.4)]
        draw_line(axes, mean, "ink", 2.2, f"{c.variant}: mean {text(c.difference)}", cap="butt")
    _name_rows(axes, [c.variant for c in comparison.against])
    return figure


@rc_context(STYLE)
def draw_seeds(comparison: Comparison) -> Figure:
    """Draw the mean score of each training as a dot, and their mean as a line."""
    metric, table = comparison.metric, comparison.seed_means
    figure, axes = new_figure(92 + 34 * len(table))
    for at, (name, row) in enumerate(table.iterrows()):
        own = row.dropna()
        seeds = ", ".join(f"{seed}: {metric.text(value)}" for seed, value in own.items())
        mean = [(float(own.mean()), at - 0.35), (float(own.mean()), at + 0.35)]
        draw_line(axes, mean, "soft", 1.6, f"{name}: mean {metric.text(mean[0][0])}", cap="butt")
        draw_points(
            axes, own.to_numpy(float), [at] * len(own), "accent", f"{name}, seed {seeds}", 8
        )
    _name_rows(axes, list(map(str, table.index)))
    direction = "higher is better" if metric.up else "lower is better"
    axes.set_xlabel(textwrap.fill(f"mean {metric.label} ({direction})", AXIS_LABEL_LENGTH))
    return figure


def _new_difference_figure(comparison: Comparison, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure whose axis has the differences from the baseline, with the margin."""
    metric, margin = comparison.metric, comparison.margin
    figure, axes = new_figure(height)
    if margin is not None:
        axes.axvspan(-margin, margin, color=PALETTE["band"], zorder=0)
        axes.annotate(
            f"margin \N{PLUS-MINUS SIGN}{margin:g}",
            (0, 1),
            (0, 6),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            horizontalalignment="center",
            color=PALETTE["soft"],
        )
    axes.axvline(0, color=PALETTE["soft"], linewidth=1)
    side = "right" if metric.up else "left"
    label = f"{metric.label} minus {shorten_name(comparison.baseline)} (better to the {side})"
    axes.set_xlabel(textwrap.fill(label, AXIS_LABEL_LENGTH))
    return figure, axes


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    shortened = [shorten_name(name) for name in names]
    axes.set_yticks(range(len(names)), shortened, color=PALETTE["ink"])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


@rc_context(STYLE)
def draw_pareto(comparison: Comparison) -> Figure:
    """Draw quality over MACs; variants on the Pareto front are filled and joined, ties are grey."""
    table = comparison.variants.dropna(subset="mean")
    macs = table["macs"] / 1e9
    figure, axes = new_figure(310)
    axes.margins(0.1)
    axes.set_xlabel("MACs per slice, G")
    axes.set_title(comparison.metric.label)
    front = macs[table["pareto_front"] == "yes"].sort_values()
    joined = list(zip(front, table["mean"][front.index], strict=True))
    draw_line(axes, joined, "accent", 1.2, "Pareto front", dashes=(3, 4))
    names = []
    for name, row in table.iterrows():
        x, y = row["macs"] / 1e9, row["mean"]
        place = {"yes": "on the Pareto front", "tie": "tied", "no": "not on the front"}
        tooltip = f"{name}: {comparison.metric.text(y)} at {x:.2f} G MACs, "
        tooltip += place[row["pareto_front"]]
        draw_line(axes, [(x, row["low"]), (x, row["high"])], "soft", 1.2, tooltip)
        fill = {"yes": "accent", "tie": "tie", "no": "paper"}[row["pareto_front"]]
        draw_point(axes, x, y, "accent", fill, tooltip)
        label = axes.annotate(shorten_name(str(name)), (x, y), (11, 0), textcoords="offset points")
        label.set_verticalalignment("center_baseline")
        names.append(label)
    figure.draw_without_rendering()  # The layout decides how far apart the points are.
    places = axes.transData.transform(list(zip(macs, table["mean"], strict=True)))
    points = [(x, -y) for x, y in places * 72 / figure.dpi]
    for label, (_, own), height in zip(names, points, _separate_labels(points), strict=True):
        label.set_position((11, own - height))
    return figure


def _separate_labels(points: Sequence[tuple[float, float]]) -> list[float]:
    """Return heights of labels, moved down where they would cover an earlier one.

    Places and heights are in points of 1/72 inch, from the left and from the top.
    """
    width, height = 90.0, 16.0
    heights = [y for _, y in points]
    placed: list[int] = []
    for at in sorted(range(len(points)), key=lambda at: points[at][1]):
        for other in placed:
            if abs(points[at][0] - points[other][0]) < width:
                heights[at] = max(heights[at], heights[other] + height)
        placed.append(at)
    return heights


def draw_histories(variants: Sequence[Variant], watched: bool) -> list[Figure]:
    """Draw learning curves: a thin line per run, a thick one for the mean of several runs.

    There is one figure per column of the histories that any run has. `watched` says whether the
    runs were validated on the test set.
    """
    drawn = []
    for column, label in HISTORIES.items():
        curves = {
            v.name: [curve for run in v.runs if (curve := load_learning_curve(run, column))]
            for v in variants
        }
        if any(curves.values()):
            named = label.format(watched="watched test" if watched else "validation")
            drawn.append(_draw_learning_curves(curves, named))
    return drawn


def load_learning_curve(run: RunFolder, column: str) -> Curve:
    """Return a column of a run's history over its epochs; empty if there is none."""
    try:
        points = run.history[["epoch", column]].astype(float).dropna()
    except (DataError, ValueError, LookupError):
        return []
    return [(float(epoch), float(value)) for epoch, value in points.to_numpy()]


@rc_context(STYLE)
def _draw_learning_curves(curves: Mapping[str, Sequence[Curve]], label: str) -> Figure:
    figure, axes = new_figure(310)
    axes.set_title(label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True))
    for at, (name, runs) in enumerate(curves.items()):
        colour, dashes = line_style(at)
        for curve in runs:
            width, alpha = (1.0, 0.5) if len(runs) > 1 else (2.2, 1.0)
            draw_line(axes, curve, colour, width, f"{name}, a run", dashes, alpha=alpha)
        if len(runs) > 1:
            mean = _mean_curve(runs)
            draw_line(axes, mean, colour, 2.2, f"{name}, mean of {len(runs)} runs", dashes)
    return figure


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean over runs at the epochs that all of them have."""
    by_epoch = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(values) for values in by_epoch)))
    return [(epoch, float(np.mean([v[epoch] for v in by_epoch]))) for epoch in shared]


def line_style(at: int) -> tuple[str, tuple[float, ...]]:
    """Return colour (a variable of the style sheet) and dashes of a variant's learning curves."""
    return f"v{at % VARIANT_COLOURS}", DASHES[at // VARIANT_COLOURS % len(DASHES)]
