"""The canvas of the figures: their style, their marks, and their form for the page."""

import io
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from attnseg.study.statistics import PatientValues

Curve = Sequence[tuple[float, float]]

WIDTH = 480.0  # points, the unit of the SVG
PNG_WIDTH = 800.0  # pixels
NAME_LENGTH = 22  # characters of a variant's name
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


def new_figure(height: float) -> tuple[Figure, Axes]:
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


def shorten_name(name: str) -> str:
    """Return a name of at most `NAME_LENGTH` characters."""
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def draw_line(
    axes: Axes,
    points: Curve,
    colour: str,
    width: float,
    tooltip: str,
    dashes: tuple[float, ...] = (),
    alpha: float = 1.0,
    cap: Literal["butt", "round"] = "round",
    marker: str = "",
) -> None:
    """Draw a line through points."""
    axes.plot(
        *zip(*points, strict=True),
        color=PALETTE[colour],
        linewidth=width,
        linestyle=(0, dashes) if dashes else "-",
        alpha=alpha,
        solid_capstyle=cap,
        marker=marker,
        markersize=7,
        gid=TOOLTIP + tooltip,
    )


def draw_point(axes: Axes, x: float, y: float, colour: str, fill: str, tooltip: str) -> None:
    """Draw a large point with a coloured edge."""
    axes.plot(
        x,
        y,
        "o",
        markersize=10,
        markeredgewidth=2,
        markeredgecolor=PALETTE[colour],
        markerfacecolor=PALETTE[fill],
        gid=TOOLTIP + tooltip,
    )


def draw_points(
    axes: Axes,
    x: Sequence[float] | PatientValues,
    y: Sequence[float] | PatientValues,
    colour: str,
    tooltip: str,
    size: float = 5,
) -> None:
    """Draw many small points that share a tooltip; those that overlap look darker."""
    axes.plot(
        x,
        y,
        "o",
        markersize=size,
        markeredgewidth=0,
        markerfacecolor=PALETTE[colour],
        alpha=0.5,
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
