"""Compares metric profiles on the same predictions and lists the cases where they disagree."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from attnseg.errors import ConfigError
from attnseg.evaluation.evaluate import FinishedRun, build_profiles
from attnseg.evaluation.options import Evaluate
from attnseg.evaluation.summary import format_interval, format_value
from attnseg.files import write_text
from attnseg.metrics.bounds import VOLUMES
from attnseg.metrics.profiles.profile import Profile
from attnseg.runs.run_folder import RunFolder

SHOWN = 12  # rows of the printed table


def metrics_diff(config: Evaluate) -> pd.DataFrame:
    """Score a run under several profiles; print where they differ and write `differences.csv`.

    Returns:
        The rows of `find_differences`.

    Raises:
        ConfigError: fewer than two profiles, or no run.
    """
    profiles = build_profiles(config.profile)
    if len(profiles) < 2 or config.run is None:
        raise ConfigError("profile: give a run and two profiles or more: profiles=strict,transunet")
    finished = FinishedRun(RunFolder(config.run), config)
    cases = finished.cases(config, f"metrics_diff {' '.join(config.profile)}")
    scores = finished.score(config, cases, profiles)
    print_means(profiles, scores, config.split)
    differing = find_differences(profiles, scores)
    print_differences(profiles, differing, scores)
    folder = Path(config.outputs or finished.folder.evaluation) / config.split
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "differences.csv", differing.to_csv(index=False, lineterminator="\n"))
    return differing


def print_means(profiles: Sequence[Profile], scores: pd.DataFrame, split: str) -> None:
    """Print every profile's mean of every metric, and the numbers of cases that it leaves out."""
    patients, cases = scores["patient"].nunique(), scores["case"].nunique()
    table = Table(
        title=f"{split}: {cases} cases of {patients} patients, the same predictions by profile",
        title_justify="left",
    )
    for column in ("profile", "metric", "mean", "95 % interval", "undefined, missed, spurious"):
        table.add_column(column, justify="left" if column in ("profile", "metric") else "right")
    for profile in profiles:
        summary = profile.summarise(scores[scores["profile"] == profile.name])
        mean = summary.loc["mean"].astype(float).to_dict()
        counts = ", ".join(f"{mean[c]:.0f}" for c in ("undefined", "missed", "spurious"))
        table.add_section()
        title = profile.title
        for metric in profile.metrics:
            if metric.shown and metric.name in summary:
                value, low, high = (
                    format_value(metric, mean.get(f"{metric.name}{end}", math.nan))
                    for end in ("", "_low", "_high")
                )
                interval = format_interval(low, high)
                table.add_row(title, profile.label(metric), value, interval, counts)
                title = ""  # The next rows belong to the same profile.
    Console().print(table)


def find_differences(profiles: Sequence[Profile], scores: pd.DataFrame) -> pd.DataFrame:
    """Return the cases and classes whose numbers differ between profiles.

    Returns:
        A row per case, class and metric (regardless of its unit) that two profiles or more have,
        with a column per profile, `spread` (see `relative_spread`) and `why` (see
        `explain_difference`); the largest spread first.
    """
    quantities = {(p.name, m.name): m.quantity for p in profiles for m in p.metrics}
    numbers: dict[tuple[str, str, str], dict[str, float]] = {}
    voxels: dict[tuple[str, str], dict[str, float]] = {}
    columns = ["case", "class", "metric", "profile", "value"]
    for case, name, metric, profile, value in scores[columns].to_numpy().tolist():
        if metric in VOLUMES:
            voxels.setdefault((case, name), {})[metric] = value
        elif (profile, metric) in quantities:
            key = (case, name, quantities[profile, metric])
            numbers.setdefault(key, {})[profile] = value
    rows = []
    for (case, name, quantity), by_profile in numbers.items():
        spread = relative_spread(list(by_profile.values()))
        if len(by_profile) > 1 and spread > 1e-6:
            why = explain_difference(voxels[case, name])
            by_name = (by_profile.get(p.name, math.nan) for p in profiles)
            rows.append((case, name, quantity, *by_name, spread, why))
    titles = ["case", "class", "metric", *(p.name for p in profiles), "spread", "why"]
    return pd.DataFrame(rows, columns=titles).sort_values(
        ["spread", "case", "class"], ascending=[False, True, True], kind="stable"
    )


def relative_spread(values: list[float]) -> float:
    """Return the range of numbers as a share of the largest; 1 if some are undefined (NaN)."""
    known = [abs(value) for value in values if not math.isnan(value)]
    if len(known) < len(values):
        return 1.0 if known else 0.0
    return (max(known) - min(known)) / max(known) if max(known) else 0.0


def explain_difference(voxels: dict[str, float]) -> str:
    """Return why profiles differ: an empty mask of a case and class, or else their definitions."""
    true, predicted = (voxels[name] > 0 for name in VOLUMES)
    if true and predicted:
        return "definition"
    if true or predicted:
        return "missed" if true else "spurious"
    return "both empty"


def print_differences(
    profiles: Sequence[Profile], differing: pd.DataFrame, scores: pd.DataFrame
) -> None:
    """Print how often profiles differ for each reason, and the rows that differ most."""
    console = Console()
    total = scores[["case", "class"]].drop_duplicates().shape[0]
    for reason, rows in differing.groupby("why"):
        pairs = rows[["case", "class"]].drop_duplicates().shape[0]
        console.print(f"{reason}: {pairs} of {total} cases and classes", highlight=False)
    names = [p.name for p in profiles]
    shown = differing.head(SHOWN)
    titles = ", ".join(p.title for p in profiles)
    undefined = int(shown[names].isna().to_numpy().sum())
    title = f"Where profiles differ most: {titles}; undefined: {undefined}, as -"
    console.print(title, highlight=False)
    table = Table()
    for column in ("case", "class", "metric", *names, "why"):
        table.add_column(column, justify="right" if column in names else "left")
    for row in shown.to_dict("records"):
        numbers = [format_with_unit(p, row["metric"], row[p.name]) for p in profiles]
        table.add_row(row["case"], row["class"], row["metric"], *numbers, row["why"])
    if len(differing) > SHOWN:
        table.caption = f"and {len(differing) - SHOWN} more in differences.csv"
    console.print(table)


def format_with_unit(profile: Profile, quantity: str, value: float) -> str:
    """Format a value with the unit that the profile has for this quantity."""
    metric = next((m for m in profile.metrics if m.quantity == quantity), None)
    if metric is None or math.isnan(value):
        return "-"
    return f"{format_value(metric, value)} {metric.unit}".strip()
