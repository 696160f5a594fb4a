"""Tables of a comparison, on the terminal and as CSV, Markdown and LaTeX."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import rich.table
from rich.console import Console
from rich.markup import escape

from attnseg.study.comparison import Comparison
from attnseg.study.contrasts import ATTENTION, NOTHING_SHOWN, Claim, Contrast
from attnseg.study.metric import ComparedMetric
from attnseg.study.verdict import ABOUT
from attnseg.study.wording import interval_text, p_value_text

LATEX_ESCAPES = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass(frozen=True)
class TableCell:
    """Text of a cell; bold only where a difference is shown."""

    text: str
    bold: bool = False


Row = Mapping[str, str | TableCell]  # cells by heading


@dataclass(frozen=True)
class ResultTable:
    """Rows of cells under a title; the first `left` columns hold words, the others numbers."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[list[TableCell]]
    left: int = 1
    caption: str | None = None


def build_tables(comparison: Comparison) -> list[ResultTable]:
    """Return the tables of a comparison, in reading order."""
    tables = [
        tabulate_quality(comparison),
        tabulate_costs(comparison),
        tabulate_differences(comparison),
        tabulate_classes(comparison),
    ]
    if comparison.errors:
        tables.append(tabulate_errors(comparison))
    if len(comparison.variants) > 2:
        tables.append(tabulate_pairs(comparison))
    return [replace(table, caption=comparison.watermark) for table in tables]


def _make_table(name: str, title: str, rows: Sequence[Row], left: int = 1) -> ResultTable:
    cells = [[TableCell(c) if isinstance(c, str) else c for c in row.values()] for row in rows]
    return ResultTable(name, title, tuple(rows[0]) if rows else (), cells, left)


def tabulate_quality(comparison: Comparison) -> ResultTable:
    """Tabulate each variant's mean with its interval and the deviations of patients and seeds."""
    metric = comparison.metric
    rows = [
        {
            "variant": str(name),
            metric.label: metric.text(row["mean"]),
            _level_title(comparison): metric.interval_text(row["low"], row["high"]),
            "runs, seeds": f"{row['runs']:.0f}, {row['seeds']:.0f}",
            f"SD of patients, {metric.unit}": metric.text(row["patient_sd"]),
            f"SD of seeds ({_level_title(comparison)}), {metric.unit}": metric.deviation_text(
                *row[["seed_sd", "seed_sd_low", "seed_sd_high"]]
            ),
            "undefined": f"{row['undefined']:.0f}",
        }
        for name, row in comparison.variants.iterrows()
    ]
    return _make_table("quality", f"Quality. {comparison.title}", rows)


def tabulate_costs(comparison: Comparison) -> ResultTable:
    """Tabulate quality beside costs, with the costs' changes from the baseline."""
    metric = comparison.metric
    scales = {
        "parameters": ("params, M", 1e6, 2),
        "macs": ("MACs per slice, G", 1e9, 2),
        "fit_seconds": ("training, s", 1.0, 1),
        "peak_memory_bytes": ("peak memory, MiB", 2.0**20, 0),
    }
    if comparison.variants["joules_per_image"].notna().any():
        scales["joules_per_image"] = ("training, J per image", 1.0, 3)
    rows = []
    for name, row in comparison.variants.iterrows():
        cells = {"variant": str(name), metric.label: metric.text(row["mean"])}
        for key, (heading, scale, digits) in scales.items():
            change = row[f"{key}_change_percent"] if name in comparison.bases else None
            cells[heading] = _cost_text(row[key] / scale, digits, change)
        for key, heading in (
            ("parameters", "params outside attention"),
            ("macs", "MACs outside attention"),
        ):
            cells[heading] = share_text(row[f"{key}_outside"])
        rows.append({**cells, "Pareto front": row["pareto_front"]})
    title = (
        f"Quality beside cost, changes against {comparison.baseline}. The share outside attention "
        f"is what another attention leaves as it is. {comparison.title}"
    )
    return _make_table("costs", _title_with_undefined(title, comparison), rows)


def tabulate_differences(comparison: Comparison) -> ResultTable:
    """Tabulate each other variant minus its baseline, with a row for each of the two claims."""
    metric, unit = comparison.metric, comparison.metric.unit
    rows: list[Row] = [
        {
            "variant": c.variant,
            "about": ABOUT[claim.of],
            f"minus {comparison.baseline}, {unit}": _difference_cell(c, metric, claim),
            **_corrected_cells(claim, comparison),
            **_equivalence_cells(c, claim, comparison),
            "verdict": _verdict_cell(claim),
            f"detectable, power 0.8, {unit}": (
                "none" if math.isinf(claim.detectable) else metric.text(claim.detectable)
            ),
        }
        for c in comparison.against
        for claim in (c.attention, c.networks)
    ]
    title = f"Minus {comparison.baseline}, paired. {comparison.title}"
    return _make_table("differences", title, rows, left=2)


def tabulate_classes(comparison: Comparison) -> ResultTable:
    """Tabulate the differences from the baseline class by class."""
    metric = comparison.metric
    means, undefined = comparison.class_means.to_dict(), comparison.class_undefined.to_dict()
    rows: list[Row] = [
        {
            "class": c.what,
            "variant": c.variant,
            metric.label: metric.text(means[c.variant][c.what]),
            f"minus {comparison.baseline}, {metric.unit}": _difference_cell(c, metric),
            **_claim_cells(c, comparison),
            "undefined": f"{undefined[c.variant][c.what]}, {undefined[c.baseline][c.what]}",
        }
        for c in comparison.classes
    ]
    title = f"Class by class, minus {comparison.baseline}; undefined of both. {comparison.title}"
    return _make_table("classes", title, rows, left=2)


def tabulate_errors(comparison: Comparison) -> ResultTable:
    """Tabulate missed and spurious classes with their tests against the baseline."""
    by_variant: dict[str, dict[str, str | TableCell]] = {}
    for e in comparison.errors:
        row = by_variant.setdefault(e.variant, {"variant": e.variant})
        share = f" ({share_text(e.count / e.of)})" if e.of else ""
        row[e.error] = f"{e.count} of {e.of}{share}"
        compared = e.variant in comparison.bases
        row[f"patients more, fewer {e.error}"] = f"{e.more}, {e.fewer}" if compared else "-"
        text = p_value_text(e.p) if compared else "-"
        row[f"p ({e.error})"] = TableCell(text, bold=e.p <= 1 - comparison.level)
    title = (
        "Missed: there, but not predicted. Spurious: predicted, but not there. Classes, cases and "
        f"runs are counted; the exact test (McNemar) counts patients against "
        f"{comparison.baseline}, p by Holm. {comparison.title}"
    )
    return _make_table("errors", title, list(by_variant.values()))


def tabulate_pairs(comparison: Comparison) -> ResultTable:
    """Tabulate the differences of all pairs of variants."""
    metric = comparison.metric
    rows: list[Row] = [
        {
            "variant": c.variant,
            "minus": c.baseline,
            f"diff., {metric.unit}": _difference_cell(c, metric),
            **_claim_cells(c, comparison),
            "other sign": share_text(c.flips),
        }
        for c in comparison.pairs
    ]
    return _make_table("pairs", f"All pairs. {comparison.title}", rows, left=2)


def _corrected_cells(claim: Claim, comparison: Comparison, of: str = "") -> dict[str, str]:
    """Return interval and p-value, both corrected for the family, by heading."""
    ends = (claim.simultaneous_low, claim.simultaneous_high)
    interval = interval_text(*ends, comparison.metric)
    title = f"{_level_title(comparison)}, corr."
    return {f"{title}{of}": interval, f"p (Holm){of}": p_value_text(claim.p_holm)}


def _claim_cells(c: Contrast, comparison: Comparison) -> dict[str, str]:
    """Return corrected interval, p-value and verdict of both claims, by heading."""
    return {
        heading: text
        for claim in (c.attention, c.networks)
        for heading, text in (
            *_corrected_cells(claim, comparison, f", {claim.of}").items(),
            (f"verdict, {claim.of}", _verdict_cell(claim)),
        )
    }


def _equivalence_cells(c: Contrast, claim: Claim, comparison: Comparison) -> dict[str, str]:
    """Return the intervals that decide equivalence, by heading; none without a margin."""
    if comparison.margin is None:
        return {}
    level = f"{100 * (1 - 2 * c.alpha):g} % CI"
    metric = comparison.metric
    return {
        f"{level}, corr.": interval_text(claim.low_90, claim.high_90, metric),
        f"{level}, unseen failures allowed for": interval_text(
            claim.equivalence_low, claim.equivalence_high, metric
        ),
    }


def _verdict_cell(claim: Claim) -> str:
    if claim.verdict == NOTHING_SHOWN and claim.noninferior:
        return "as good"
    return "-" if math.isnan(claim.low) and claim.of == ATTENTION else claim.verdict


def _difference_cell(c: Contrast, metric: ComparedMetric, claim: Claim | None = None) -> TableCell:
    return TableCell(metric.text(c.difference), bold=(claim or c.attention).different)


def _level_title(comparison: Comparison) -> str:
    return f"{100 * comparison.level:g} % CI"


def _title_with_undefined(title: str, comparison: Comparison) -> str:
    return f"{title}, undefined left out: {comparison.variants['undefined'].sum()}"


def _cost_text(value: float, digits: int, change: float | None) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if change is None else f" ({change:+.1f} %)")


def share_text(share: float) -> str:
    """Return a share as tables show it."""
    return "-" if math.isnan(share) else f"{share:.0%}"


def print_comparison(comparison: Comparison) -> None:
    """Print tables, verdicts, notes and warnings."""
    for table in build_tables(comparison):
        printed = rich.table.Table(title=escape(table.title), title_justify="left")
        total = 1
        for i, column in enumerate(table.columns):
            # Only headers may wrap; the table is then as wide as it needs, whatever the terminal.
            unbreakable = [*column.split(), *(row[i].text for row in table.rows)]
            width = max(map(len, unbreakable), default=1)
            justify: Literal["left", "right"] = "left" if i < table.left else "right"
            printed.add_column(escape(column), justify=justify, width=width)
            total += width + 3
        for row in table.rows:
            printed.add_row(*(_rich_cell(cell) for cell in row))
        if table.caption is not None:
            printed.caption, printed.caption_justify = escape(table.caption), "left"
        Console(width=max(Console().width, total)).print(printed)
    print("\n".join(_remarks(comparison)))


def _remarks(comparison: Comparison) -> list[str]:
    warnings = [f"warning: {warning}" for warning in comparison.warnings]
    return [comparison.headline, *comparison.verdicts, *comparison.notes, *warnings]


def _rich_cell(cell: TableCell) -> str:
    return f"[bold]{escape(cell.text)}[/bold]" if cell.bold else escape(cell.text)


def write_tables(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.md`, `comparison.tex` and one CSV file per table with all digits."""
    (folder / "comparison.md").write_text(to_markdown(comparison))
    (folder / "comparison.tex").write_text(to_latex(comparison))
    frames = {
        "variants": comparison.variants.reset_index(),
        "against": _contrast_frame(comparison.against),
        "pairs": _contrast_frame(comparison.pairs),
        "classes": _contrast_frame(comparison.classes),
        "missed_spurious": pd.DataFrame([asdict(error) for error in comparison.errors]),
        "patients": comparison.patients.rename_axis("patient").reset_index(),
    }
    facts = {"metric": comparison.metric.name, "convention": comparison.title}
    if comparison.watermark is not None:
        facts["watermark"] = comparison.watermark
    for name, frame in frames.items():
        frame.assign(**facts).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


def _contrast_frame(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """Return a row per contrast; the columns of a claim begin with its name."""
    nested = [
        {**asdict(c), "verdict": c.verdict, "different": c.different, "equivalent": c.equivalent}
        for c in contrasts
    ]
    return pd.json_normalize(nested, sep="_")


def to_markdown(comparison: Comparison) -> str:
    """Return the comparison as a page of Markdown."""
    paragraphs = ["# Comparison", comparison.headline, *_bullet_list(comparison.verdicts)]
    for table in build_tables(comparison):
        rows = [[_markdown_cell(cell) for cell in row] for row in table.rows]
        rule = ["---" if i < table.left else "---:" for i in range(len(table.columns))]
        header = [_markdown_cell(TableCell(column)) for column in table.columns]
        lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
        caption = [f"**{table.caption}**"] if table.caption else []
        paragraphs += [f"## {table.title}", "\n".join(lines), *caption]
    paragraphs += ["## Notes", *_bullet_list(comparison.notes)]
    if comparison.warnings:
        paragraphs += ["## Warnings", *_bullet_list(comparison.warnings)]
    return "\n\n".join(paragraphs) + "\n"


def _bullet_list(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)]


def _markdown_cell(cell: TableCell) -> str:
    text = cell.text.replace("|", "\\|")
    return f"**{text}**" if cell.bold else text


def to_latex(comparison: Comparison) -> str:
    """Return the tables as LaTeX for `booktabs`; verdicts, notes and warnings are comments."""
    lines = ["% needs \\usepackage{booktabs}", *(f"% {line}" for line in _remarks(comparison))]
    for table in build_tables(comparison):
        align = "l" * table.left + "r" * (len(table.columns) - table.left)
        caption = ". ".join(text for text in (table.title, table.caption) if text)
        lines += [
            "",
            r"\begin{table}",
            rf"\caption{{{_escape_latex(caption)}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(_escape_latex(column) for column in table.columns) + r" \\",
            r"\midrule",
            *(" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: TableCell) -> str:
    return rf"\textbf{{{_escape_latex(cell.text)}}}" if cell.bold else _escape_latex(cell.text)


def _escape_latex(text: str) -> str:
    return "".join(LATEX_ESCAPES.get(c, c) for c in text)
