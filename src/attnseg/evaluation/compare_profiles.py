"""The same predictions under several conventions, side by side, and which cases tell them apart."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from attnseg.errors import ConfigError
from attnseg.evaluation import summary as results
from attnseg.evaluation.evaluate import FinishedRun, build_profiles
from attnseg.evaluation.options import Evaluate
from attnseg.files import write_text
from attnseg.metrics.profiles.profile import VOLUMES, Metric, Profile
from attnseg.runs.run_folder import RunFolder

SHOWN = 12  # cases in the table


def metrics_diff(config: Evaluate) -> pd.DataFrame:
    """Score a run under several profiles and print what differs, and where.

    Returns:
        The cases and classes whose numbers differ, largest difference first.

    Raises:
        ConfigError: fewer than two profiles, or no run.
    """
    profiles = build_profiles(config.profile)
    if len(profiles) < 2 or config.run is None:
        raise ConfigError("profile: give a run and two profiles or more: profiles=strict,transunet")
    finished = FinishedRun(RunFolder(config.run), config)
    cases = finished.cases(config, f"metrics_diff {' '.join(config.profile)}")
    scores = finished.score(config, cases, profiles)
    show_means(profiles, scores, config.split)
    differing = differences(profiles, scores)
    show_cases(profiles, differing, scores)
    folder = Path(config.outputs or finished.folder.evaluation) / config.split
    folder.mkdir(parents=True, exist_ok=True)
    text = differing.to_csv(index=False, lineterminator="\n")
    write_text(folder / "differences.csv", text)
    return differing


def kind(metric: Metric) -> str:
    """Return what a metric measures, whatever its unit: hd95 of hd95_mm and hd95_voxels."""
    return metric.name.removesuffix("_mm").removesuffix("_voxels")


def show_means(profiles: Sequence[Profile], scores: pd.DataFrame, split: str) -> None:
    """Print the mean of every profile and metric, and what it leaves out."""
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
                columns = (metric.name, f"{metric.name}_low", f"{metric.name}_high")
                value, *ends = (
                    results.number(metric, float(mean.get(column, math.nan))) for column in columns
                )
                label = profile.label(metric)
                table.add_row(title, label, value, results.between(*ends), counts)
                title = ""
    Console().print(table)


def differences(profiles: Sequence[Profile], scores: pd.DataFrame) -> pd.DataFrame:
    """Return cases and classes whose numbers differ between profiles.

    Returns:
        A row per case, class and kind of metric (see `kind`) that two profiles or more have: a
        column per profile, `spread` (share of the largest number, 1 where one profile leaves the
        case out) and `why`. Largest spread first.
    """
    kinds = {(p.name, m.name): kind(m) for p in profiles for m in p.metrics}
    numbers: dict[tuple[str, str, str], dict[str, float]] = {}
    voxels: dict[tuple[str, str], dict[str, float]] = {}
    for row in scores[["case", "class", "metric", "profile", "value"]].to_numpy().tolist():
        case, name, metric, profile, value = row
        if metric in VOLUMES:
            voxels.setdefault((case, name), {})[metric] = value
        elif (profile, metric) in kinds:
            place = (case, name, kinds[profile, metric])
            numbers.setdefault(place, {})[profile] = value
    rows = []
    for (case, name, what), found in numbers.items():
        apart = spread(list(found.values()))
        if len(found) > 1 and apart > 1e-6:
            key = {"case": case, "class": name, "metric": what}
            rows.append({**key, **found, "spread": apart, "why": why(voxels[case, name])})
    columns = ["case", "class", "metric", *(p.name for p in profiles), "spread", "why"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["spread", "case", "class"], ascending=[False, True, True], kind="stable"
    )


def spread(values: list[float]) -> float:
    """Return how far numbers lie apart, as a share of the largest; 1 if some are undefined."""
    known = [abs(value) for value in values if not math.isnan(value)]
    if len(known) < len(values):
        return 1.0 if known else 0.0
    return (max(known) - min(known)) / max(known) if max(known) else 0.0


def why(voxels: dict[str, float]) -> str:
    """Return what is special of a case and class."""
    true, predicted = (voxels[name] > 0 for name in VOLUMES)
    if true and predicted:
        return "definition"
    if true or predicted:
        return "missed" if true else "spurious"
    return "both empty"


def show_cases(profiles: Sequence[Profile], differing: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Print how often profiles differ and why, and the cases where they differ most."""
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
        numbers = [with_unit(p, row["metric"], row[p.name]) for p in profiles]
        table.add_row(row["case"], row["class"], row["metric"], *numbers, row["why"])
    if len(differing) > SHOWN:
        table.caption = f"and {len(differing) - SHOWN} more in differences.csv"
    console.print(table)


def with_unit(profile: Profile, what: str, value: float) -> str:
    """Return a number with the unit that the profile has for this kind of metric."""
    metric = next((m for m in profile.metrics if kind(m) == what), None)
    if metric is None or math.isnan(value):
        return "-"
    unit = next((u for u in ("mm", "voxels") if metric.name.endswith(f"_{u}")), "")
    return f"{results.number(metric, value)} {unit}".strip()
