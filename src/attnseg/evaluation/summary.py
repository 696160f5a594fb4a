"""Tables and files that sum up the scores of cases."""

import math
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from attnseg.metrics.bounds import VOLUMES
from attnseg.metrics.profiles.profile import Metric, Profile


def convert_summary(profile: Profile, table: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    """Convert the table of `profile.summarise(scores)` to plain values for JSON.

    Undefined values become `None`.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, row in table.iterrows():
        names = [m.name for m in profile.metrics if m.name in table]
        bounded = [n for n in names if f"{n}_low" in table and not math.isnan(row[f"{n}_low"])]
        counts = ("cases", "undefined", "missed", "spurious")
        rows[str(name)] = {
            **{metric: _plain(row[metric]) for metric in names},
            "interval": {
                m: [_plain(row[f"{m}_{end}"]) for end in ("low", "high")] for m in bounded
            },
            **{count: int(row[count]) for count in counts},
        }
    mean = rows.pop("mean")
    del mean["cases"]
    return {
        "patients": int(scores["patient"].nunique()),
        "cases": int(scores["case"].nunique()),
        "mean": mean,
        "classes": rows,
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def print_summary(
    profile: Profile,
    source: str,
    table: pd.DataFrame,
    scores: pd.DataFrame,
    watermark: str | None = None,
) -> None:
    """Print a table of `Profile.summarise` under a title with the numbers of cases and patients."""
    cases, patients = scores["case"].nunique(), scores["patient"].nunique()
    title = f"{source}: {cases} cases of {patients} patients, profile {profile.title}"
    printed = Table()
    printed.add_column("class", no_wrap=True)
    metrics = [m for m in profile.metrics if m.shown and m.name in table]
    for metric in metrics:
        printed.add_column(profile.label(metric), justify="right")
    printed.add_column("undefined,\nmissed,\nspurious", justify="right")
    for name, row in table.iterrows():
        counts = ", ".join(f"{row[count]:.0f}" for count in ("undefined", "missed", "spurious"))
        if name == "mean":
            printed.add_section()
        numbers = [format_value(metric, row[metric.name]) for metric in metrics]
        printed.add_row(str(name), *numbers, counts)
    mean = table.loc["mean"].astype(float).to_dict()
    if any(f"{m.name}_low" in table for m in metrics):
        for end in ("low", "high"):
            ends = [format_value(m, mean.get(f"{m.name}_{end}", math.nan)) for m in metrics]
            printed.add_row(f"95 % {end}", *ends, "")
    if watermark is not None:
        printed.caption, printed.caption_justify = watermark, "left"
    console = Console()
    console.print(title, highlight=False)  # A title of the table would wrap at its width.
    console.print(printed)


def format_value(metric: Metric, value: float) -> str:
    """Format a value for tables; `-` if undefined."""
    return "-" if math.isnan(value) else f"{value:.{metric.digits}f}"


def format_interval(low: str, high: str) -> str:
    """Format an interval from its formatted ends."""
    return "-" if low == "-" else f"{low} to {high}"


def rank_cases(profile: Profile, scores: pd.DataFrame) -> pd.Series:
    """Return the mean over classes of the profile's first per-class metric by case, best first."""
    own = scores[scores["profile"] == profile.name]
    names = set(own["metric"]) - set(VOLUMES)
    first = next((m for m in profile.metrics if m.name in names), None)
    if first is None:
        return pd.Series(dtype=float)
    means = own[own["metric"] == first.name].groupby("case")["value"].mean().dropna()
    return means.sort_values(ascending=not first.up, kind="stable")
