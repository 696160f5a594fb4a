"""Figures as files: JSON as measured, and Markdown tables of all that lies in a suite's folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnseg.benchmark.timing import Spread
from attnseg.files import write_text

Cell = Spread | float | int | str | None
Row = dict[str, Cell]
DIGITS = 3
BILLION = 10**9


def write_record(folder: Path, label: str, record: Mapping[str, Any]) -> None:
    """Write what was measured of one workload: `<label>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{label}.json", json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return all that was measured in a suite's folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def format_table(columns: Mapping[str, str], found: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table.

    Args:
        columns: headings by key.
        found: records with `label` and `rows`; a column in which nothing stands is left out.
    """
    rows = [{"label": record["label"], **row} for record in found for row in record["rows"]]
    used = {
        key: heading
        for key, heading in columns.items()
        if any(row.get(key) is not None for row in rows)
    }
    lines = ["| " + " | ".join(used.values()) + " |", "|" + "---|" * len(used)]
    lines += ["| " + " | ".join(format_cell(row.get(key)) for key in used) + " |" for row in rows]
    return "\n".join(lines)


def format_cell(value: Cell) -> str:
    """Return a value as tables have it: a spread as median (least to most)."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        median, low, high = (format_number(value[key]) for key in ("median", "min", "max"))
        return f"{median} ({low} to {high})"
    return str(value) if isinstance(value, str) else format_number(value)


def format_number(value: float) -> str:
    """Return a number with three significant digits, large ones and counts in full."""
    if isinstance(value, int):
        return f"{value:,}" if value < BILLION else f"{value / BILLION:.2f} G"
    if abs(value) >= 10 ** (DIGITS - 1):
        return f"{value:,.0f}"
    return f"{value:#.{DIGITS}g}".rstrip(".")


def format_conditions(found: Sequence[Mapping[str, Any]]) -> str:
    """Return one line: the machine, and its limits while this was measured."""
    machine = found[0]["machine"]
    limits: dict[str, list[Spread]] = {}
    for record in found:
        for name, measured in record["limits"].items():
            limits.setdefault(name, []).append(measured)
    ranges = {
        name: " to ".join(
            (
                format_number(min(each["min"] for each in spreads)),
                format_number(max(each["max"] for each in spreads)),
            )
        )
        for name, spreads in limits.items()
    }
    copies = ranges.pop("copy")
    products = ", ".join(f"{name} {rate} GFLOP/s" for name, rate in ranges.items())
    return (
        f"{machine['device']}, {machine['threads']} threads, PyTorch {machine['torch']}. Medians "
        f"(least to most) of {found[0]['repeats']} in alternation. Measured in the same runs: "
        f"matrix product {products}; copying {copies} GB/s."
    )
