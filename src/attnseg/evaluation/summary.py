"""Tables, files and pictures of how predictions did on whole cases."""

import math
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from attnseg.metrics.profiles.profile import VOLUMES, Metric, Profile


def summary(profile: Profile, table: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    """Return a table of `Profile.summarise` as plain values; undefined numbers are null.

    Args:
        profile: that made the table.
        table: the table.
        scores: what it was made of.
    """
    rows = {}
    for name, row in table.iterrows():
        values: dict[str, Any] = {
            m.name: _plain(row[m.name]) for m in profile.metrics if m.name in table
        }
        values["interval"] = {
            m.name: [_plain(row[f"{m.name}_low"]), _plain(row[f"{m.name}_high"])]
            for m in profile.metrics
            if f"{m.name}_low" in table and not math.isnan(row[f"{m.name}_low"])
        }
        counts = ("cases", "undefined", "missed", "spurious")
        values |= {count: int(row[count]) for count in counts}
        rows[str(name)] = values
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


def show(
    profile: Profile,
    what: str,
    table: pd.DataFrame,
    scores: pd.DataFrame,
    watermark: str | None = None,
) -> None:
    """Print a table of `Profile.summarise`; what it was made of says how many cases."""
    cases, patients = scores["case"].nunique(), scores["patient"].nunique()
    title = f"{what}: {cases} cases of {patients} patients, profile {profile.title}"
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
        numbers = [number(metric, row[metric.name]) for metric in metrics]
        printed.add_row(str(name), *numbers, counts)
    mean = table.loc["mean"].astype(float).to_dict()
    if any(f"{m.name}_low" in table for m in metrics):
        for end in ("low", "high"):
            ends = [number(m, mean[f"{m.name}_{end}"]) for m in metrics]
            printed.add_row(f"95 % {end}", *ends, "")
    if watermark is not None:
        printed.caption, printed.caption_justify = watermark, "left"
    console = Console()
    console.print(title, highlight=False)  # not the table's own, which wraps at its width
    console.print(printed)


def number(metric: Metric, value: float) -> str:
    """Return a number as tables have it."""
    return "-" if math.isnan(value) else f"{value:.{metric.digits}f}"


def between(low: str, high: str) -> str:
    """Return an interval as tables have it."""
    return "-" if low == "-" else f"{low} to {high}"


def ranked(profile: Profile, scores: pd.DataFrame) -> pd.Series:
    """Return each case's mean over classes of the profile's first per-class metric, best first."""
    own = scores[scores["profile"] == profile.name]
    names = set(own["metric"]) - set(VOLUMES)
    first = next((m for m in profile.metrics if m.name in names), None)
    if first is None:
        return pd.Series(dtype=float)
    means = own[own["metric"] == first.name].groupby("case")["value"].mean().dropna()
    return means.sort_values(ascending=not first.up, kind="stable")
