"""The page of a comparison: one HTML file that needs no network and no other file."""

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from importlib import metadata
from importlib.resources import files

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from attnseg.runs.variants import Variant
from attnseg.study import cases, checks, figures, provenance, tables
from attnseg.study.canvas import CSS, to_svg
from attnseg.study.comparison import Comparison
from attnseg.study.metric import ComparedMetric
from attnseg.study.verdict import ABOUT, failure_text, write_claim

PAGE_NAME = "comparison.html"
CLASS_COLOURS = 8  # in the style sheet; further classes reuse them
TINT_STEPS = 4  # of the heat map: from one, two, four and eight margins on


def render_page(
    comparison: Comparison, variants: Sequence[Variant], split: str, max_cases: int, command: str
) -> str:
    """Return the page's HTML; `command` is the line that repeats this comparison."""
    script = files("attnseg.study").joinpath("templates/comparison.js").read_text()
    browser = cases.build_case_browser(variants, split, comparison.metric, max_cases)
    names = [variant.name for variant in variants]
    made = tables.build_tables(comparison)
    return load_template("comparison.html").render(
        comparison=comparison,
        names=names,
        headline=use_minus_signs(comparison.headline),
        policy=security_policy(CSS, script),
        css=Markup(CSS),
        script=Markup(script),
        # Not every comparison has these tables.
        tables={"pairs": None, "errors": None} | {t.name: t for t in made},
        about=ABOUT,
        verdicts=list_verdicts(comparison),
        ninety=f"{100 * (2 * comparison.level - 1):g}",
        one_seed=any(min(c.seeds) < 2 for c in comparison.against),
        **draw_figures(comparison),
        heat=build_heat_map(comparison),
        steps=[(comparison.margin or 0) * 2**step for step in range(TINT_STEPS)],
        curves=[
            to_svg(figure, "Learning curves, a line per run")
            for figure in figures.draw_histories(variants, comparison.watermark is not None)
        ],
        line_styles=[figures.line_style(at) for at in range(len(names))],
        browser=browser,
        pictured=any(case["slices"] for case in browser.cases),
        data=_script_data(browser, names, comparison.metric),
        splits=provenance.list_splits(variants),
        excluded=provenance.list_excluded(variants),
        profile=checks.profile_title(variants[0].runs[0]),
        rules=provenance.list_rules(variants[0].runs[0]),
        options=checks.list_differing_options(variants),
        runs=provenance.list_run_origins(variants),
        shared=provenance.list_shared_facts(variants),
        commands=provenance.list_commands(variants),
        command=command,
        split=split,
        version=metadata.version("attnseg"),
    )


def draw_figures(comparison: Comparison) -> dict[str, Markup]:
    """Return the figures of differences, patients, seeds and cost as elements of the page."""
    base = comparison.baseline
    return {
        "forest": to_svg(
            figures.draw_forest(comparison),
            f"Differences from {base} with their intervals; see the table below",
        ),
        "patients": to_svg(
            figures.draw_patients(comparison), f"Every patient's difference from {base}"
        ),
        "seeds": to_svg(figures.draw_seeds(comparison), "The mean score of each training"),
        "pareto": to_svg(
            figures.draw_pareto(comparison), "Quality over cost; the cost table has the numbers"
        ),
    }


def list_verdicts(comparison: Comparison) -> list[dict[str, object]]:
    """Return the verdict of each comparison, a sentence for each claim, and failures."""
    metric = comparison.metric
    return [
        {
            "variant": c.variant,
            "verdict": "no verdict on the attention" if min(c.seeds) < 2 else c.verdict,
            "claims": [
                (ABOUT[claim.of], write_claim(c, claim, metric))
                for claim in (c.attention, c.networks)
            ],
            "failures": failure_text(c, metric),
        }
        for c in comparison.against
    ]


def load_template(name: str, package: str = "attnseg.study") -> Template:
    """Return a page's template in a package; it may extend `page.html` of this one."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(each) for each in (package, "attnseg.study")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = use_minus_signs
    return environment.get_template(name)


def _script_data(
    browser: cases.CaseBrowser, names: Sequence[str], metric: ComparedMetric
) -> dict[str, object]:
    """Return what the page's script reads."""
    return {
        "cases": browser.cases,
        "classes": browser.classes,
        "overlapping": browser.overlapping,
        "hues": CLASS_COLOURS,
        "variants": names,
        "colours": figures.VARIANT_COLOURS,
        "digits": metric.digits,
        "label": metric.label,
        "up": metric.up,
    }


def security_policy(css: str, script: str) -> str:
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


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def use_minus_signs(text: str) -> str:
    """Return text whose negative numbers have a minus sign instead of a hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)


def build_heat_map(comparison: Comparison) -> list[tuple[str, list[dict[str, object]]]]:
    """Return each class with one cell per variant: mean, difference, tint, bold, undefined.

    The differences are those of the table of classes, paired, and not of the shown means.
    """
    metric = comparison.metric
    contrasts = {(c.what, c.variant): c for c in comparison.classes}
    means, undefined = comparison.class_means.to_dict(), comparison.class_undefined.to_dict()
    rows = []
    for name in map(str, comparison.class_means.index):
        row: list[dict[str, object]] = []
        for variant, own in means.items():
            contrast = contrasts.get((name, str(variant)))
            difference = math.nan if contrast is None else contrast.difference
            row.append(
                {
                    "text": metric.text(own[name]),
                    "difference": _signed_text(difference, metric),
                    "tint": _tint(difference, metric.up, comparison.margin),
                    "bold": contrast is not None and contrast.different,
                    "undefined": undefined[variant][name],
                }
            )
        rows.append((name, row))
    return rows


def _signed_text(value: float, metric: ComparedMetric) -> str:
    return "" if math.isnan(value) else use_minus_signs(f"{value:+.{metric.digits}f}")


def _tint(difference: float, up: bool, margin: float | None) -> str:
    """Return a cell's CSS class: one step at the margin, one more for each doubling of it."""
    if margin is None or math.isnan(difference) or abs(difference) < margin:
        return "even"
    # The small addend keeps exact powers of two from falling short by rounding.
    step = min(TINT_STEPS, 1 + math.floor(math.log2(abs(difference) / margin) + 1e-9))
    return f"{'better' if (difference > 0) == up else 'worse'}-{step}"
