"""A comparison as one HTML file that needs nothing else: no network, no other file."""

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attnseg.runs.finished import Run, Variant
from attnseg.study import cases, comparable, drawings, provenance, tables
from attnseg.study.comparison import Comparison
from attnseg.study.drawings import Curve
from attnseg.study.metric import Metric
from attnseg.study.verdict import headline

NAME = "comparison.html"
HUES = 8  # of classes; later ones begin anew
STEPS = 4  # of the heat map's tints: from one margin on, then from two, four and eight
CURVES = {"val/dice": "{watched} Dice", "train/loss": "training loss"}


def write(
    found: Comparison, variants: Sequence[Variant], split: str, most: int, command: str, path: Path
) -> None:
    """Write the page.

    Args:
        found: what is shown.
        variants: what it was found in, each baseline before its others.
        split: `val` or `test`.
        most: cases that are shown singly, with their pictures.
        command: that makes this comparison again.
        path: of the file.
    """
    path.write_text(render(found, variants, split, most, command))


def render(
    found: Comparison, variants: Sequence[Variant], split: str, most: int, command: str
) -> str:
    """Return the page; see `write`."""
    environment = Environment(
        loader=PackageLoader("attnseg.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = minus
    loader = environment.loader
    assert loader is not None
    css, script = (
        loader.get_source(environment, f"comparison.{kind}")[0] for kind in ("css", "js")
    )
    described, classes, overlapping = cases.describe(variants, split, found.metric, most)
    scored = len(cases.table(variants, split, found.metric.name))
    return environment.get_template("comparison.html").render(
        found=found,
        names=[variant.name for variant in variants],
        headline=headline(found.against, found.baseline, found.metric, found.margin),
        policy=policy(css, script),
        css=Markup(css),
        script=Markup(script),
        tables=tables,
        drawings=drawings,
        heat=heat(found),
        steps=[found.margin * 2**step for step in range(STEPS)],
        curves=curves(variants, found.watermark is not None),
        cases=described,
        scored=scored,
        pictured=any(case["slices"] for case in described),
        data={
            "cases": described,
            "classes": classes,
            "overlapping": overlapping,
            "hues": HUES,
            "variants": [variant.name for variant in variants],
            "colours": drawings.COLOURS,
            "digits": found.metric.digits,
            "label": found.metric.label,
            "up": found.metric.up,
        },
        choices=comparable.choices(variants),
        rows=provenance.of_runs(variants),
        shared=provenance.shared(variants),
        commands=provenance.commands(variants),
        command=command,
        split=split,
    )


def policy(css: str, script: str) -> str:
    """Return a content security policy: nothing from elsewhere, no code but this very script."""
    return "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_digest(css)}'",
            f"script-src '{_digest(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def minus(text: str) -> str:
    """Return text whose negative numbers have a minus sign, not a hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def heat(found: Comparison) -> list[tuple[str, list[dict[str, object]]]]:
    """Return a row per class with a cell per variant: mean, difference, tint, and whether shown."""
    shown = {(c.what, c.variant) for c in found.classes if c.different}
    means, undefined = found.class_means.to_dict(), found.class_undefined.to_dict()
    rows = []
    for name in map(str, found.class_means.index):
        row: list[dict[str, object]] = []
        for variant, own in means.items():
            base = found.bases.get(str(variant))
            difference = own[name] - means[base][name] if base is not None else math.nan
            row.append(
                {
                    "text": found.metric.text(own[name]),
                    "difference": _signed(difference, found.metric),
                    "tint": _tint(difference, found.metric.up, found.margin),
                    "bold": (name, variant) in shown,
                    "undefined": undefined[variant][name],
                }
            )
        rows.append((name, row))
    return rows


def _signed(value: float, metric: Metric) -> str:
    return "" if math.isnan(value) else minus(f"{value:+.{metric.digits}f}")


def _tint(difference: float, up: bool, margin: float) -> str:
    """Return the CSS class of a cell: how many doublings of the margin its difference is from 0."""
    if math.isnan(difference) or abs(difference) < margin:
        return "even"
    step = min(STEPS, 1 + math.floor(math.log2(abs(difference) / margin) + 1e-9))
    return f"{'better' if (difference > 0) == up else 'worse'}-{step}"


def curves(variants: Sequence[Variant], watched: bool) -> list[Markup]:
    """Draw the runs' histories; nothing where no run has one."""
    drawn = []
    for column, label in CURVES.items():
        found = {
            v.name: [line for run in v.runs if (line := history(run, column))] for v in variants
        }
        if any(found.values()):
            named = label.format(watched="watched test" if watched else "validation")
            drawn.append(drawings.curves(found, named))
    return drawn


def history(run: Run, column: str) -> Curve:
    """Return a column of a run's history over its epochs; empty if it has none."""
    try:
        table = pd.read_csv(run.folder / "history.csv")
        points = table[["epoch", column]].astype(float).dropna()
    except (OSError, ValueError, LookupError):
        return []
    return [(float(epoch), float(value)) for epoch, value in points.to_numpy()]
