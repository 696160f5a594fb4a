"""Records of measurements as JSON files, and Markdown tables of a suite's records."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnseg.benchmark.timing import Spread
from attnseg.files import write_json

Cell = Spread | float | int | str | None
Row = dict[str, Cell]
DIGITS = 3
BILLION = 10**9


def write_record(folder: Path, label: str, record: Mapping[str, Any]) -> None:
    """Write the record of one workload as `<label>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{label}.json", record)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return all records in a suite's folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def format_table(columns: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of the records' rows; columns without any value are left out.

    `columns` has the headings by key.
    """
    rows = [{"label": record["label"], **row} for record in records for row in record["rows"]]
    filled = {key for row in rows for key, value in row.items() if value is not None}
    used = {key: heading for key, heading in columns.items() if key in filled}
    lines = ["| " + " | ".join(used.values()) + " |", "|" + "---|" * len(used)]
    lines += ["| " + " | ".join(format_cell(row.get(key)) for key in used) + " |" for row in rows]
    return "\n".join(lines)


def format_cell(value: Cell) -> str:
    """Return a value as tables show it, a spread as `median (least to most)`."""
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


def format_conditions(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one line on the machine and its limits during the measurements."""
    machine = records[0]["machine"]
    limits: dict[str, list[float]] = {}
    for record in records:
        for name, spread in record["limits"].items():
            limits.setdefault(name, []).extend((spread["min"], spread["max"]))
    ranges = {
        name: f"{format_number(min(ends))} to {format_number(max(ends))}"
        for name, ends in limits.items()
    }
    copies = ranges.pop("copy")
    products = ", ".join(f"{name} {rate} GFLOP/s" for name, rate in ranges.items())
    return (
        f"{machine['device']}, {machine['threads']} threads, PyTorch {machine['torch']}. Medians "
        f"(least to most) of {records[0]['repeats']} in alternation. Measured in the same runs: "
        f"matrix product {products}; copying {copies} GB/s."
    )
