"""A comparison as tables: on the terminal, as CSV, Markdown and LaTeX."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Printed

from attnseg.study.comparison import Comparison
from attnseg.study.contrasts import Contrast
from attnseg.study.metric import Metric

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
LATEX |= {"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}


@dataclass(frozen=True)
class Cell:
    """Text, and whether it stands out: only where a difference is shown."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a title; `left` columns are words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    left: int = 1
    caption: str | None = None


def all_tables(found: Comparison) -> list[Table]:
    """Return the tables of a comparison, in reading order."""
    made = [quality(found), cost(found), against(found), classes(found)]
    if len(found.variants) > 2:
        made.append(pairs(found))
    return [replace(table, caption=found.watermark) for table in made]


def quality(found: Comparison) -> Table:
    """Every variant's mean with its interval, and how much of the variance is due to seeds."""
    metric = found.metric
    columns = (
        "variant",
        metric.label,
        _level(found),
        "runs, seeds",
        f"SD of patients, {metric.unit}",
        f"SD of seeds, {metric.unit}",
        "undefined",
    )
    rows = [
        _cells(
            str(name),
            metric.text(row["mean"]),
            metric.between(row["low"], row["high"]),
            f"{row['runs']:.0f}, {row['seeds']:.0f}",
            metric.text(row["patient_sd"]),
            metric.text(row["seed_sd"]),
            f"{row['undefined']:.0f}",
        )
        for name, row in found.variants.iterrows()
    ]
    return Table(f"Quality. {found.title}", columns, rows)


def cost(found: Comparison) -> Table:
    """Quality beside what it costs, with changes against the baseline."""
    metric = found.metric
    scales = {
        "parameters": ("params, M", 1e6, 2),
        "macs": ("MACs per slice, G", 1e9, 2),
        "fit_seconds": ("training, s", 1.0, 1),
        "peak_memory_bytes": ("peak memory, MiB", 2.0**20, 0),
    }
    columns = ("variant", metric.label, *(name for name, _, _ in scales.values()), "Pareto front")
    rows = []
    for name, row in found.variants.iterrows():
        amounts = [
            _amount(row[key] / scale, digits, row[f"{key}_change_percent"], name in found.bases)
            for key, (_, scale, digits) in scales.items()
        ]
        front = "yes" if row["pareto_front"] else "no"
        rows.append(_cells(str(name), metric.text(row["mean"]), *amounts, front))
    title = f"Quality beside cost, changes against {found.baseline}. {found.title}"
    return Table(_counted(title, found), columns, rows)


def against(found: Comparison) -> Table:
    """Every other variant minus the baseline."""
    metric, unit = found.metric, found.metric.unit
    columns = (
        "variant",
        f"minus {found.baseline}, {unit}",
        _level(found),
        f"{_level(found)}, corr.",
        "p (Holm)",
        f"p (equal within {found.margin:g})",
        f"could be shown, {unit}",
        "sign flips",
    )
    rows = [
        [
            Cell(c.variant),
            _difference(c, metric),
            Cell(metric.between(c.low, c.high)),
            Cell(metric.between(c.simultaneous_low, c.simultaneous_high)),
            Cell(p_text(c.p_holm)),
            Cell(p_text(c.equivalence_p)),
            Cell("none" if math.isinf(c.detectable) else metric.text(c.detectable)),
            Cell(share_text(c.flips)),
        ]
        for c in found.against
    ]
    return Table(_counted(f"Minus {found.baseline}. {found.title}", found), columns, rows)


def classes(found: Comparison) -> Table:
    """Every class's difference from the baseline."""
    metric = found.metric
    columns = (
        "class",
        "variant",
        metric.label,
        f"minus {found.baseline}, {metric.unit}",
        f"{_level(found)}, corr.",
        "p (Holm)",
        "undefined",
    )
    means, undefined = found.class_means.to_dict(), found.class_undefined.to_dict()
    rows = [
        [
            Cell(c.what),
            Cell(c.variant),
            Cell(metric.text(means[c.variant][c.what])),
            _difference(c, metric),
            Cell(metric.between(c.simultaneous_low, c.simultaneous_high)),
            Cell(p_text(c.p_holm)),
            Cell(", ".join(str(undefined[name][c.what]) for name in (c.variant, c.baseline))),
        ]
        for c in found.classes
    ]
    title = f"Class by class, minus {found.baseline}; undefined of both. {found.title}"
    return Table(title, columns, rows, left=2)


def pairs(found: Comparison) -> Table:
    """All pairs of variants."""
    metric = found.metric
    columns = (
        "variant",
        "minus",
        f"diff., {metric.unit}",
        f"{_level(found)}, corr.",
        "p (Holm)",
        f"p (equal within {found.margin:g})",
        "sign flips",
    )
    rows = [
        [
            Cell(c.variant),
            Cell(c.baseline),
            _difference(c, metric),
            Cell(metric.between(c.simultaneous_low, c.simultaneous_high)),
            Cell(p_text(c.p_holm)),
            Cell(p_text(c.equivalence_p)),
            Cell(share_text(c.flips)),
        ]
        for c in found.pairs
    ]
    return Table(_counted(f"All pairs. {found.title}", found), columns, rows, left=2)


def _cells(*texts: str) -> list[Cell]:
    return [Cell(text) for text in texts]


def _difference(c: Contrast, metric: Metric) -> Cell:
    return Cell(metric.text(c.difference), bold=c.different)


def _level(found: Comparison) -> str:
    return f"{100 * found.level:g} % CI"


def _counted(title: str, found: Comparison) -> str:
    return f"{title}, undefined left out: {found.variants['undefined'].sum()}"


def _amount(value: float, digits: int, change: float, changed: bool) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + (f" ({change:+.1f} %)" if changed else "")


def p_text(p: float) -> str:
    """Return a p-value as tables have it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def share_text(share: float) -> str:
    """Return a share as tables have it."""
    return "-" if math.isnan(share) else f"{share:.0%}"


def show(found: Comparison) -> None:
    """Print tables, verdicts, notes and warnings."""
    for table in all_tables(found):
        printed = Printed(title=escape(table.title), title_justify="left")
        total = 1
        for i, column in enumerate(table.columns):
            # Only headers are broken into lines; a table may be wider than the terminal.
            parts = [*column.split(), *(row[i].text for row in table.rows)]
            width = max(map(len, parts), default=1)
            justify: Literal["left", "right"] = "left" if i < table.left else "right"
            printed.add_column(escape(column), justify=justify, width=width)
            total += width + 3
        for row in table.rows:
            printed.add_row(*(_rich(cell) for cell in row))
        if table.caption is not None:
            printed.caption, printed.caption_justify = escape(table.caption), "left"
        Console(width=max(Console().width, total)).print(printed)
    for line in [*found.verdicts, *found.notes, *(f"warning: {w}" for w in found.warnings)]:
        print(line)


def _rich(cell: Cell) -> str:
    return f"[bold]{escape(cell.text)}[/bold]" if cell.bold else escape(cell.text)


def write(found: Comparison, folder: Path) -> None:
    """Write `comparison.md`, `comparison.tex` and a CSV file per table with all digits."""
    (folder / "comparison.md").write_text(markdown(found))
    (folder / "comparison.tex").write_text(latex(found))
    frames = {
        "variants": found.variants.reset_index(),
        "against": _frame(found.against),
        "pairs": _frame(found.pairs),
        "classes": _frame(found.classes),
        "patients": found.patients.rename_axis("patient").reset_index(),
    }
    facts = {"metric": found.metric.name, "convention": found.title}
    if found.watermark is not None:
        facts["watermark"] = found.watermark
    for name, frame in frames.items():
        frame.assign(**facts).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


def _frame(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    return pd.DataFrame(
        [{**asdict(c), "different": c.different, "equivalent": c.equivalent} for c in contrasts]
    )


def markdown(found: Comparison) -> str:
    """Return the comparison as a page of Markdown."""
    parts = ["# Comparison", *_bullets(found.verdicts)]
    for table in all_tables(found):
        rows = [[_markdown(cell) for cell in row] for row in table.rows]
        rule = ["---" if i < table.left else "---:" for i in range(len(table.columns))]
        header = [_markdown(Cell(column)) for column in table.columns]
        lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
        caption = [f"**{table.caption}**"] if table.caption else []
        parts += [f"## {table.title}", "\n".join(lines), *caption]
    parts += ["## Notes", *_bullets(found.notes)]
    if found.warnings:
        parts += ["## Warnings", *_bullets(found.warnings)]
    return "\n\n".join(parts) + "\n"


def _bullets(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)]


def _markdown(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|")
    return f"**{text}**" if cell.bold else text


def latex(found: Comparison) -> str:
    """Return the tables as LaTeX, for `booktabs`; warnings are comments above them."""
    said = [*found.verdicts, *found.notes, *(f"warning: {w}" for w in found.warnings)]
    parts = ["% needs \\usepackage{booktabs}", *(f"% {line}" for line in said)]
    for table in all_tables(found):
        align = "l" * table.left + "r" * (len(table.columns) - table.left)
        caption = ". ".join(part for part in (table.title, table.caption) if part)
        parts += [
            "",
            r"\begin{table}",
            rf"\caption{{{_escape(caption)}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(_escape(column) for column in table.columns) + r" \\",
            r"\midrule",
            *(" & ".join(_latex(cell) for cell in row) + r" \\" for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def _latex(cell: Cell) -> str:
    return rf"\textbf{{{_escape(cell.text)}}}" if cell.bold else _escape(cell.text)


def _escape(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)
