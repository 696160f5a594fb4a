"""A comparison's drawings for its page: SVG whose colours are the page's, light or dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from attnseg.study.comparison import Comparison

WIDTH = 480.0  # in the drawing's own units, about pixels
LETTER = 8.6  # width of one at the larger size that CSS gives text in drawings on a phone
LONGEST = 22  # letters of a name
COLOURS = 6  # of variants; dashes tell apart what shares one

Curve = Sequence[tuple[float, float]]


def element(name: str, *children: Markup, **attributes: object) -> Markup:
    """Return an SVG element; attributes are escaped, `class_` is `class`, `_` becomes `-`."""
    text = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
    )
    inside = Markup("").join(children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), text, inside)


def text(content: str, x: float, y: float, **attributes: object) -> Markup:
    """Return text at a point."""
    return element("text", escape(content), x=x, y=y, **attributes)


def _plain(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def _drawing(label: str, height: float, *parts: Markup) -> Markup:
    box = f"0 0 {WIDTH:g} {height:g}"
    return element("svg", *parts, viewBox=box, role="img", aria_label=label, class_="drawing")


@dataclass(frozen=True)
class Scale:
    """From values to places along an axis.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: place.
        end: place.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return a value's place."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> "Scale":
        """Return a scale that has all finite values with some room around them."""
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def ticks(self, whole: bool = False) -> list[float]:
        """Return about five round values within, whole numbers if need be."""
        locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole)
        found = locator.tick_values(self.low, self.high)
        return [float(tick) for tick in found if self.low <= tick <= self.high]


def _axis_x(
    scale: Scale, top: float, bottom: float, label: str, whole: bool = False
) -> list[Markup]:
    parts = []
    for tick in scale.ticks(whole):
        at = scale(tick)
        parts.append(element("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid"))
        parts.append(text(_number(tick), at, bottom + 17, class_="tick middle"))
    middle = (scale.start + scale.end) / 2
    return [*parts, text(label, middle, bottom + 38, class_="label middle")]


def _axis_y(scale: Scale, left: float, right: float, label: str) -> list[Markup]:
    parts = []
    for tick in scale.ticks():
        at = scale(tick)
        parts.append(element("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(text(_number(tick), left - 7, at + 4, class_="tick end"))
    return [*parts, text(label, 0.0, min(scale.start, scale.end) - 12, class_="label")]


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-12 else "0"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def forest(found: Comparison) -> Markup:
    """Draw every variant's difference from the baseline, over the margin of equivalence.

    Thick lines are intervals of one comparison, thin ones are corrected for all; a filled point is
    a difference that was shown.
    """
    rows, metric = found.against, found.metric
    left = 16 + LETTER * max(len(_short(c.variant)) for c in rows)
    top, step = 30.0, 38.0
    bottom = top + step * len(rows)
    ends = [end for c in rows for end in (c.simultaneous_low, c.simultaneous_high, c.low, c.high)]
    points = [c.difference for c in rows]
    x = Scale.around([*ends, *points, -found.margin, found.margin], left, WIDTH - 14)
    way = "higher is better" if metric.up else "lower is better"
    zero, band = x(0), x(found.margin) - x(-found.margin)
    parts = [
        element("rect", x=x(-found.margin), y=top, width=band, height=bottom - top, class_="band"),
        *_axis_x(x, top, bottom, f"{metric.label} minus {found.baseline} ({way})"),
        element("line", x1=zero, x2=zero, y1=top, y2=bottom, class_="zero"),
        text(f"margin \N{PLUS-MINUS SIGN}{found.margin:g}", zero, top - 10, class_="tick middle"),
    ]
    for at, c in enumerate(rows):
        y = top + (at + 0.5) * step
        interval = metric.between(c.simultaneous_low, c.simultaneous_high)
        said = f"{c.variant}: {metric.text(c.difference)}, corrected interval {interval}"
        marks = [element("title", escape(said))]
        for low, high, thickness in (
            (c.simultaneous_low, c.simultaneous_high, "thin"),
            (c.low, c.high, "thick"),
        ):
            if low == low:
                marks.append(element("line", x1=x(low), x2=x(high), y1=y, y2=y, class_=thickness))
        point = "point shown" if c.different else "point"
        marks.append(element("circle", cx=x(c.difference), cy=y, r=5.5, class_=point))
        parts.append(element("g", *marks))
        parts.append(text(_short(c.variant), 0.0, y + 4, class_="name"))
    label = f"Differences from {found.baseline} with their intervals; the table below has them"
    return _drawing(label, bottom + 50, *parts)


def pareto(found: Comparison) -> Markup:
    """Draw quality over MACs; variants that no other beats are filled and joined."""
    table = found.variants
    macs = (table["macs"] / 1e9).to_list()
    quality, low, high = (table[name].to_list() for name in ("mean", "low", "high"))
    top, bottom, left, right = 34.0, 262.0, 48.0, WIDTH - 14
    x = Scale.around(macs, left + 10, right - 70)
    y = Scale.around([*quality, *low, *high], bottom, top)
    across = Scale(
        x.low, x.low + (x.high - x.low) * (right - x.start) / (x.end - x.start), x.start, right
    )
    parts = [
        *_axis_x(across, top, bottom, "MACs per slice, G"),
        *_axis_y(y, left, right, found.metric.label),
    ]
    front = sorted(
        (m, q) for m, q, f in zip(macs, quality, table["pareto_front"], strict=True) if f
    )
    joined = " ".join(f"{x(m):.1f},{y(q):.1f}" for m, q in front)
    parts.append(element("polyline", points=joined, class_="front"))
    places = _apart([(x(m), y(q)) for m, q in zip(macs, quality, strict=True)])
    for at, name in enumerate(map(str, table.index)):
        if quality[at] != quality[at]:
            continue
        here, height = x(macs[at]), y(quality[at])
        said = f"{name}: {found.metric.text(quality[at])} at {macs[at]:.2f} G MACs"
        marks = [element("title", escape(said))]
        if low[at] == low[at]:
            marks.append(
                element("line", x1=here, x2=here, y1=y(low[at]), y2=y(high[at]), class_="whisker")
            )
        point = "point shown" if table["pareto_front"].iloc[at] else "point"
        marks.append(element("circle", cx=here, cy=height, r=5.5, class_=point))
        marks.append(text(_short(name), here + 11, places[at] + 4, class_="name halo"))
        parts.append(element("g", *marks))
    return _drawing("Quality over cost; the cost table has the numbers", bottom + 50, *parts)


def _apart(points: Sequence[tuple[float, float]]) -> list[float]:
    """Return heights for labels at points, moved down where they would cover an earlier one."""
    wide, high = 10 * LETTER, 16.0
    moved = [y for _, y in points]
    done: list[int] = []
    for at in sorted(range(len(points)), key=lambda at: points[at][1]):
        for other in done:
            if abs(points[at][0] - points[other][0]) < wide:
                moved[at] = max(moved[at], moved[other] + high)
        done.append(at)
    return moved


def curves(found: Mapping[str, Sequence[Curve]], label: str) -> Markup:
    """Draw a value over epochs: a thin line per run, a thick one for the mean of several.

    Args:
        found: curves of each variant's runs, points of epoch and value.
        label: of the value.
    """
    every = [point for lines in found.values() for line in lines for point in line]
    top, bottom, left, right = 34.0, 262.0, 48.0, WIDTH - 14
    x = Scale.around([e for e, _ in every], left, right)
    y = Scale.around([v for _, v in every], bottom, top)
    parts = [*_axis_x(x, top, bottom, "epoch", whole=True), *_axis_y(y, left, right, label)]
    for at, lines in enumerate(found.values()):
        for line in lines:
            thin = "run" if len(lines) > 1 else "mean"
            parts.append(_line(line, x, y, at, thin))
        if len(lines) > 1:
            parts.append(_line(_mean(lines), x, y, at, "mean"))
    return _drawing(f"{label} by epoch, a line per run", bottom + 50, *parts)


def _line(points: Curve, x: Scale, y: Scale, at: int, kind: str) -> Markup:
    places = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in points if math.isfinite(v))
    return element("polyline", points=places, class_=f"{kind} {style(at)}")


def style(at: int) -> str:
    """Return the CSS classes of a variant's lines: a colour, then dashes for those after it."""
    return f"v{at % COLOURS} d{at // COLOURS % 3}"


def _mean(lines: Sequence[Curve]) -> Curve:
    """Return the mean over runs at the epochs that all have."""
    by_epoch = [dict(line) for line in lines]
    shared = sorted(set.intersection(*(set(values) for values in by_epoch)))
    return [(epoch, float(np.mean([v[epoch] for v in by_epoch]))) for epoch in shared]


def key(at: int) -> Markup:
    """Return a variant's sign in the legend of curves."""
    line = element("line", x1=1, x2=27, y1=6, y2=6, class_=f"mean {style(at)}")
    return element("svg", line, viewBox="0 0 28 12", class_="key", aria_hidden="true")
