"""The chart of what attentions see: figures, tables, and a page that needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import colormaps, rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from attnseg.files import replacing, write_text
from attnseg.prediction.overlay import COLOURS
from attnseg.probes.probe import find_probe
from attnseg.probing.battery import CellStore, Traits
from attnseg.probing.verdicts import ChartEntry, tabulate_entries, tabulate_levels
from attnseg.study.canvas import PALETTE, STYLE, to_svg
from attnseg.study.figures import line_style
from attnseg.study.page import load_template, security_policy

Entries = Mapping[tuple[str, str], ChartEntry]

PAGE = "probes.html"
CELL_INCHES = (0.92, 0.34)
LABEL_INCHES = (1.6, 1.5)
WAY_MAP = colormaps["YlGnBu"]
SHOWN_SIDE = 96  # pixels of a picture on the page
TINTS = ((0.2, "worse-2"), (0.6, "even"), (0.9, "better-1"), (2.0, "better-3"))  # share of the way
BASELINE = "qkv"


def write_chart(
    folder: Path,
    entries: Entries,
    traits: Mapping[str, Traits],
    store: CellStore,
    facts: dict[str, str],
) -> None:
    """Write `chart.csv`, `levels.csv`, `chart.png` and the page to a folder.

    The curve over the levels of a probe, if it has them, is the file `<probe>.png`.

    Args:
        folder: folder to write to.
        entries: results by attention and probe.
        traits: facts of the attentions, in the order of the rows.
        store: where the pictures are.
        facts: what is told of the measurement, such as the command and the machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, levels = tabulate_entries(entries, traits, BASELINE), tabulate_levels(entries)
    write_text(folder / "chart.csv", table.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "levels.csv", levels.to_csv(index=False, lineterminator="\n"))
    figure = draw_chart(entries, list(traits))
    with replacing(folder / "chart.png") as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    curves = {name: draw_levels(own, str(name)) for name, own in levels.groupby("probe")}
    for name, curve in curves.items():
        with replacing(folder / f"{name!s}.png") as file:
            curve.savefig(file, format="png", dpi=100, metadata={"Software": None})
    write_text(folder / PAGE, render_chart_page(entries, traits, store, facts, curves))


@rc_context({**STYLE, "font.size": 9.0})
def draw_chart(entries: Entries, attentions: Sequence[str]) -> Figure:
    """Draw a table of scores, coloured by the share of the way from chance to the ceiling.

    A frame marks results that disagree with the declaration.
    """
    probes = list(dict.fromkeys(probe for _, probe in entries))
    wide = LABEL_INCHES[0] + CELL_INCHES[0] * len(probes)
    tall = LABEL_INCHES[1] + CELL_INCHES[1] * (len(attentions) + 2)
    figure = Figure(figsize=(wide, tall), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    for row, attention in enumerate(attentions):
        for column, probe in enumerate(probes):
            entry = entries.get((attention, probe))
            if entry is None:
                axes.text(column, row, "-", ha="center", va="center", color=PALETTE["soft"])
                continue
            way = float(np.clip(entry.way, 0, 1))
            colour = WAY_MAP(0.08 + 0.8 * way)
            edge = PALETTE["mark"] if entry.surprises else PALETTE["paper"]
            corner = (column - 0.47, row - 0.45)
            axes.add_patch(Rectangle(corner, 0.94, 0.9, facecolor=colour, edgecolor=edge, lw=1.8))
            ink = "white" if way > 0.6 else PALETTE["ink"]
            axes.text(column, row, score_text(entry), ha="center", va="center", color=ink)
    for row, key in enumerate(("chance", "ceiling"), len(attentions)):
        for column, probe in enumerate(probes):
            text = f"{getattr(find_probe(probe), key):.2f}"
            axes.text(column, row, text, ha="center", va="center", color=PALETTE["soft"])
    axes.set_xlim(-0.5, len(probes) - 0.5)
    axes.set_ylim(len(attentions) + 1.5, -0.5)
    axes.set_yticks(range(len(attentions) + 2), [*attentions, "chance", "ceiling"])
    axes.xaxis.tick_top()
    labels = [probe.replace("_", "\n") for probe in probes]
    axes.set_xticks(range(len(probes)), labels, color=PALETTE["ink"])
    return figure


def score_text(entry: ChartEntry) -> str:
    """Return the mean score and half of its interval."""
    margin = entry.margin
    text = f"{entry.mean:.2f}"
    return text if margin is None else f"{text} ±{margin:.2f}"


@rc_context(STYLE)
def draw_levels(levels: pd.DataFrame, probe: str) -> Figure:
    """Draw the scores of a probe's levels: a line per attention, the mean over seeds."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    chance = find_probe(probe).chance
    axes.axhline(chance, color=PALETTE["soft"], linewidth=1)
    axes.text(levels["level"].max(), chance, "chance", ha="right", va="bottom")
    for at, (name, own) in enumerate(levels.groupby("attention", sort=False)):
        means = own.groupby("level")["score"].mean()
        colour, dashes = line_style(at)
        style = (0, dashes) if dashes else "-"
        axes.plot(means.index, means, color=PALETTE[colour], linestyle=style, label=str(name))
    axes.set_xlabel(f"level of {probe}")
    axes.set_title("score")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def render_chart_page(
    entries: Entries,
    traits: Mapping[str, Traits],
    store: CellStore,
    facts: Mapping[str, str],
    curves: Mapping[Any, Figure],
) -> str:
    """Return the page's HTML."""
    css = files("attnseg.study").joinpath("templates/comparison.css").read_text()
    css += files("attnseg.probing").joinpath("templates/probes.css").read_text()
    probes = [find_probe(name) for name in dict.fromkeys(probe for _, probe in entries)]
    names = [probe.name for probe in probes]
    return load_template("probes.html", "attnseg.probing").render(
        headline=write_chart_headline(entries),
        policy=security_policy(css, ""),
        css=Markup(css),
        probes=probes,
        rows=[
            (
                own,
                write_prediction(own, names),
                [_show_cell(entries.get((own.name, n))) for n in names],
            )
            for own in traits.values()
        ],
        surprises=[write_surprise(entry) for entry in entries.values() if entry.surprises],
        curves={
            str(name): to_svg(figure, f"Scores of {name} by level; levels.csv has the numbers")
            for name, figure in curves.items()
        },
        galleries={name: _show_pictures(entries, traits, name, store) for name in names},
        facts=facts,
    )


def write_chart_headline(entries: Entries) -> str:
    """Return one sentence about the whole chart."""
    surprises = sum(entry.surprises for entry in entries.values())
    declared = sum(entry.declared is not None for entry in entries.values())
    attentions = len({attention for attention, _ in entries})
    probes = len({probe for _, probe in entries})
    told = f"{declared - surprises} of {declared} results are as the equations predict"
    return f"What {attentions} attentions see in {probes} probes: {told}"


def write_prediction(traits: Traits, probes: Sequence[str]) -> str:
    """Return what an attention's equation predicts, as its classes declare it."""
    sees = [name for name in probes if traits.sees.get(name) is True]
    blind = [name for name in probes if traits.sees.get(name) is False]
    parts = []
    if sees:
        parts.append(f"sees {', '.join(sees)}")
    if blind:
        parts.append(f"blind to {', '.join(blind)}")
    return f"Predicted: {'; '.join(parts)}" if parts else "Nothing is predicted"


def write_surprise(entry: ChartEntry) -> str:
    """Return a sentence about a result that disagrees with its prediction."""
    chance = find_probe(entry.probe).chance
    wanted = "see" if entry.declared else "be blind to"
    return (
        f"{entry.attention} was predicted to {wanted} {entry.probe} and scores "
        f"{score_text(entry)} (chance {chance:.2f})"
    )


def _show_cell(entry: ChartEntry | None) -> dict[str, str]:
    if entry is None:
        return {"text": "-", "tint": "even", "note": "not measured", "mark": ""}
    tint = next(name for limit, name in TINTS if entry.way <= limit or limit == TINTS[-1][0])
    note: str = entry.verdict
    if entry.share is not None and entry.uniform:
        note += f", looks {entry.share / entry.uniform:.1f}x"
    mark = (
        "" if not entry.surprises else ("expected to see" if entry.declared else "expected blind")
    )
    return {"text": score_text(entry), "tint": tint, "note": note, "mark": mark}


def _show_pictures(
    entries: Entries, traits: Mapping[str, Traits], probe: str, store: CellStore
) -> list[dict[str, Any]]:
    """Return the pictures of a probe for each attention, as data addresses."""
    shown = []
    for name in traits:
        entry = entries.get((name, probe))
        arrays = {} if entry is None else store.load_pictures(entry.first)
        pictures = {
            kind: picture_address(draw(arrays))
            for kind, draw, needed in (
                ("failure", draw_failure, "failure_image"),
                ("success", draw_success, "success_image"),
                ("map", draw_success_map, "success_map"),
            )
            if needed in arrays
        }
        if pictures:
            shown.append({"attention": name, "pictures": pictures})
    return shown


def draw_failure(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Return the truth and the prediction of a failure, side by side, `[H, 2 W, 3]`."""
    grey = arrays["failure_image"]
    return np.concatenate(
        [_blend(grey, arrays["failure_labels"]), _blend(grey, arrays["failure_predicted"])], 1
    )


def draw_success(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Return a success with the predicted classes, `[H, W, 3]`."""
    return _blend(arrays["success_image"], arrays["success_predicted"])


def draw_success_map(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Return the attention map of a success, over its picture, with a mark at its point."""
    grey = arrays["success_image"][..., None] / 255
    heat = colormaps["inferno"](arrays["success_map"].astype(np.float32))[..., :3]
    drawn = 0.35 * grey + 0.65 * heat
    row, column = arrays["success_point"]
    drawn[row, column] = (0.3, 1, 1)
    return np.asarray(drawn * 255, np.uint8)


def _blend(grey: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    drawn = np.repeat(grey[..., None] / 255, 3, 2)
    for number in np.unique(labels[labels > 0]):
        colour = np.array(to_rgb(COLOURS[(number - 1) % len(COLOURS)]))
        drawn[labels == number] = 0.4 * drawn[labels == number] + 0.6 * colour
    return np.asarray(drawn * 255, np.uint8)


def picture_address(picture: NDArray[np.uint8]) -> str:
    """Return a picture as a data address of a PNG."""
    factor = max(1, SHOWN_SIDE // picture.shape[0])
    size = (picture.shape[1] * factor, picture.shape[0] * factor)
    file = io.BytesIO()
    # A palette halves the file, and the page has hundreds of them.
    small = Image.fromarray(picture).quantize(64)
    small.resize(size, Image.Resampling.NEAREST).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
