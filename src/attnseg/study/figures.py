"""Figures of a comparison, as PNG files and as SVG in the colours of the page."""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from attnseg.errors import DataError
from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant
from attnseg.study.comparison import Comparison

Curve = Sequence[tuple[float, float]]

WIDTH = 480.0  # points, the unit of the SVG
PNG_WIDTH = 800.0  # pixels
NAME_LENGTH = 22  # characters of a variant's name
AXIS_LABEL_LENGTH = 48  # characters of a line below an axis
VARIANT_COLOURS = 6  # in the style sheet; further variants reuse them with other dashes
DASHES: tuple[tuple[float, ...], ...] = ((), (7, 5), (1.5, 5))  # lengths on and off
HISTORIES = {"val/dice": "{watched} Dice", "train/loss": "training loss"}
TOOLTIP = "tooltip: "  # begins the ids of drawn elements that have one

CSS = files("attnseg.study").joinpath("templates", "comparison.css").read_text()
PALETTE = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", CSS.split("@media")[0]))
VARIABLES = {colour: f"var(--{name})" for name, colour in reversed(PALETTE.items())}
STYLE: dict[Any, Any] = {
    "font.size": 13.0,
    "text.color": PALETTE["ink"],
    "text.parse_math": False,  # Names may contain dollar signs.
    "axes.labelcolor": PALETTE["soft"],
    "axes.titlecolor": PALETTE["soft"],
    "axes.titlesize": 13.0,
    "axes.titlelocation": "left",
    "axes.titlepad": 12.0,
    "axes.labelpad": 8.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 1.0,
    "lines.scale_dashes": False,
    "xtick.color": PALETTE["soft"],
    "ytick.color": PALETTE["soft"],
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.major.pad": 6.0,
    "ytick.major.pad": 6.0,
    "svg.fonttype": "none",  # The page's own fonts are used.
    "svg.hashsalt": "attnseg",  # The same comparison gives the same bytes.
}


@rc_context(STYLE)
def write_figures(comparison: Comparison, folder: Path) -> None:
    """Write `forest.png` and `pareto.png`, titled and marked like the tables."""
    mark = "" if comparison.watermark is None else f"\n{comparison.watermark}"
    for name, draw in (("forest", draw_forest), ("pareto", draw_pareto)):
        figure = draw(comparison)
        figure.suptitle(comparison.title + mark, fontsize=9, wrap=True)
        figure.set_figheight(figure.get_figheight() + 0.4)
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})


@rc_context(STYLE)
def draw_forest(comparison: Comparison) -> Figure:
    """Draw each variant's difference from the baseline, over the margin of equivalence.

    Thick lines are intervals of one comparison, thin lines are corrected for all; a filled point
    is a difference that was shown.
    """
    rows, metric, margin = comparison.against, comparison.metric, comparison.margin
    figure, axes = _new_figure(80 + 38 * len(rows))
    axes.axvspan(-margin, margin, color=PALETTE["band"], zorder=0)
    axes.axvline(0, color=PALETTE["soft"], linewidth=1)
    axes.annotate(
        f"margin \N{PLUS-MINUS SIGN}{margin:g}",
        (0, 1),
        (0, 6),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        horizontalalignment="center",
        color=PALETTE["soft"],
    )
    for at, c in enumerate(rows):
        claim = c.networks if min(c.seeds) < 2 else c.attention
        interval = metric.interval_text(claim.simultaneous_low, claim.simultaneous_high)
        tooltip = f"{c.variant}: {metric.text(c.difference)}, corrected interval {interval}"
        for low, high, width in (
            (claim.simultaneous_low, claim.simultaneous_high, 1.4),
            (claim.low, claim.high, 4.5),
        ):
            _draw_line(axes, [(low, at), (high, at)], "accent", width, tooltip, cap="butt")
        _draw_point(axes, c.difference, at, "accent" if c.different else "paper", tooltip)
    axes.set_yticks(range(len(rows)), [_shorten(c.variant) for c in rows], color=PALETTE["ink"])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    direction = "higher is better" if metric.up else "lower is better"
    label = f"{metric.label} minus {_shorten(comparison.baseline)} ({direction})"
    axes.set_xlabel(textwrap.fill(label, AXIS_LABEL_LENGTH))
    return figure


@rc_context(STYLE)
def draw_pareto(comparison: Comparison) -> Figure:
    """Draw quality over MACs; variants on the Pareto front are filled and joined, ties are grey."""
    table = comparison.variants.dropna(subset="mean")
    macs = table["macs"] / 1e9
    figure, axes = _new_figure(310)
    axes.margins(0.1)
    axes.set_xlabel("MACs per slice, G")
    axes.set_title(comparison.metric.label)
    front = macs[table["pareto_front"] == "yes"].sort_values()
    joined = list(zip(front, table["mean"][front.index], strict=True))
    _draw_line(axes, joined, "accent", 1.2, "Pareto front", dashes=(3, 4))
    names = []
    for name, row in table.iterrows():
        x, y = row["macs"] / 1e9, row["mean"]
        place = {"yes": "on the Pareto front", "tie": "tied", "no": "not on the front"}
        tooltip = f"{name}: {comparison.metric.text(y)} at {x:.2f} G MACs, "
        tooltip += place[row["pareto_front"]]
        _draw_line(axes, [(x, row["low"]), (x, row["high"])], "soft", 1.2, tooltip)
        fill = {"yes": "accent", "tie": "tie", "no": "paper"}[row["pareto_front"]]
        _draw_point(axes, x, y, fill, tooltip)
        label = axes.annotate(_shorten(str(name)), (x, y), (11, 0), textcoords="offset points")
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
    figure, axes = _new_figure(310)
    axes.set_title(label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True))
    for at, (name, runs) in enumerate(curves.items()):
        colour, dashes = line_style(at)
        for curve in runs:
            width, alpha = (1.0, 0.5) if len(runs) > 1 else (2.2, 1.0)
            _draw_line(axes, curve, colour, width, f"{name}, a run", dashes, alpha=alpha)
        if len(runs) > 1:
            mean = _mean_curve(runs)
            _draw_line(axes, mean, colour, 2.2, f"{name}, mean of {len(runs)} runs", dashes)
    return figure


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean over runs at the epochs that all of them have."""
    by_epoch = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(values) for values in by_epoch)))
    return [(epoch, float(np.mean([v[epoch] for v in by_epoch]))) for epoch in shared]


def line_style(at: int) -> tuple[str, tuple[float, ...]]:
    """Return colour (a variable of the style sheet) and dashes of a variant's learning curves."""
    return f"v{at % VARIANT_COLOURS}", DASHES[at // VARIANT_COLOURS % len(DASHES)]


def _new_figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of a height in points, and its axes."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=PNG_WIDTH / WIDTH * 72)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(_tick_text))
    return figure, axes


def _tick_text(value: float, _: int) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-12 else "0"


def _shorten(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def _draw_line(
    axes: Axes,
    points: Curve,
    colour: str,
    width: float,
    tooltip: str,
    dashes: tuple[float, ...] = (),
    alpha: float = 1.0,
    cap: Literal["butt", "round"] = "round",
) -> None:
    axes.plot(
        *zip(*points, strict=True),
        color=PALETTE[colour],
        linewidth=width,
        linestyle=(0, dashes) if dashes else "-",
        alpha=alpha,
        solid_capstyle=cap,
        gid=TOOLTIP + tooltip,
    )


def _draw_point(axes: Axes, x: float, y: float, fill: str, tooltip: str) -> None:
    axes.plot(
        x,
        y,
        "o",
        markersize=11,
        markeredgewidth=2,
        markeredgecolor=PALETTE["accent"],
        markerfacecolor=PALETTE[fill],
        gid=TOOLTIP + tooltip,
    )


@rc_context(STYLE)
def to_svg(figure: Figure, description: str) -> Markup:
    """Return a figure as an SVG element for the page.

    The page's policy refuses style attributes, so they become presentation attributes; colours of
    the style sheet become its variables, which differ between light and dark; tooltips become
    titles. The description is for readers who do not see the figure.
    """
    figure.patch.set_visible(False)
    file = io.StringIO()
    figure.savefig(
        file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    # XML does not allow the other control characters, which a name may contain.
    root = ElementTree.fromstring(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", file.getvalue()))
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.text, node.tail = (node.text or "").strip() or None, None
        _replace_style(node)
        identifier = node.get("id", "")
        if node.tag == "g" and identifier:
            del node.attrib["id"]
        if identifier.startswith(TOOLTIP):
            title = ElementTree.Element("title")
            title.text = identifier.removeprefix(TOOLTIP)
            node.insert(0, title)
    root.remove(root[0])  # matplotlib's style sheet
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "role": "img", "aria-label": description, "class": "drawing"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _replace_style(node: ElementTree.Element) -> None:
    """Replace style and namespaced attributes by plain ones."""
    for name in [name for name in node.attrib if name.startswith("{")]:
        node.set(name.rpartition("}")[2], node.attrib.pop(name))
    for rule in filter(None, node.attrib.pop("style", "").split("; ")):
        name, value = rule.split(": ", 1)
        if name != "font-family":
            node.set(name, VARIABLES.get(value, value))
