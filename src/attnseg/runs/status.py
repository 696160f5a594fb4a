"""What has become of all runs and of the jobs of all sweeps. No torch needed."""

import csv
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from rich.console import Console
from rich.table import Table

from attnseg.errors import DataError
from attnseg.processes.lock import is_held
from attnseg.runs.sweep_jobs import Job, ledgers


@dataclass(frozen=True)
class State:
    """Of one run, or of a job that has no run folder yet.

    Attributes:
        name: folder below the outputs; what sets a job apart from its sweep's others.
        status: `done`, `training`, `cut off`, `stopped`, `failed`, `killed`, `pending` or
            `unreadable`.
        epoch: epochs done.
        epochs: epochs asked for; `None` if not known yet.
        left: seconds that training will still take; `None` if it is not training.
        score: of the test set, or of the validation cases if that is sealed.
        measure: what the score is, with its profile.
        reason: why it failed.
    """

    name: str
    status: str
    epoch: int = 0
    epochs: int | None = None
    left: float | None = None
    score: str = ""
    measure: str = ""
    reason: str = ""


def status(outputs: Path) -> None:
    """Print the state of every run below a folder, and of the jobs that have no run yet.

    Raises:
        DataError: there is no such folder.
    """
    if not outputs.is_dir():
        raise DataError(f"{outputs}: no such folder; give that of the runs as paths.outputs=DIR")
    jobs = [job for ledger in ledgers(outputs) for job in ledger.jobs()]
    waiting = [job_state(job) for job in jobs if job.folder is None]
    show([*states(outputs), *waiting])


def states(outputs: Path) -> list[State]:
    """Return the state of every run folder below `outputs`."""
    folders = [path.parent for path in sorted(outputs.glob("*/*/*/*/run.json"))]
    return [state(folder, str(folder.relative_to(outputs))) for folder in folders]


def state(folder: Path, name: str) -> State:
    """Return the state of one run folder; `unreadable` if its files are not what a run leaves."""
    try:
        return _state(folder, name)
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        return State(name, "unreadable", reason=f"{type(error).__name__}: {reason}")


def _state(folder: Path, name: str) -> State:
    facts = json.loads((folder / "run.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    epochs = int(config["trainer"]["max_epochs"])
    seconds = []
    history = folder / "history.csv"
    if history.is_file():
        with history.open(newline="") as lines:
            seconds = [float(row["seconds"]) for row in csv.DictReader(lines)]
    status = facts["status"]
    if status == "running":
        status = "training" if is_held(folder / "lock") else "cut off"
    left = None
    if status == "training" and seconds:
        left = sum(seconds) / len(seconds) * (epochs - len(seconds))
    reason = facts.get("reason", "")
    return State(name, status, len(seconds), epochs, left, *_score(folder), reason)


def job_state(job: Job, same: Collection[str] = ()) -> State:
    """Return the state of a sweep's job: of its run, if it has one.

    Args:
        job: from the ledger.
        same: overrides that need not be named, because all jobs have them.
    """
    name = " ".join(word for word in job.overrides if word not in same)
    if job.folder is None or not (job.folder / "run.json").is_file():
        status = "cut off" if job.status == "running" else job.status
        return State(name, status, reason=job.reason)
    found = state(job.folder, name)
    if job.status == "killed" and found.status == "cut off":
        return State(name, "killed", found.epoch, found.epochs, reason=job.reason)
    return found


def show(found: Sequence[State]) -> None:
    """Print states as a table, and how many there are of each."""
    measures = {one.measure for one in found if one.measure}
    (header,) = measures if len(measures) == 1 else ("score",)
    rows = [
        {
            "run": one.name,
            "status": one.status,
            "epochs": "" if one.epochs is None else f"{one.epoch} of {one.epochs}",
            "left": "" if one.left is None else f"{one.left / 60:.0f} min",
            header: one.score if len(measures) == 1 else f"{one.score} {one.measure}".strip(),
            "reason": one.reason,
        }
        for one in found
    ]
    table = Table()
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    for name in columns:
        numeric = name in ("epochs", "left", header)
        side: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(
            name, justify=side, overflow="fold", no_wrap=name not in ("reason", header)
        )
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    console = Console()
    console.print(table)
    names = dict.fromkeys(one.status for one in found)
    counts = (f"{sum(one.status == name for one in found)} {name}" for name in names)
    console.print(", ".join(counts) or "no runs", highlight=False)


def _score(folder: Path) -> tuple[str, str]:
    path = folder / "metrics.json"
    if not path.is_file():
        return "", ""
    metrics = json.loads(path.read_text())
    role = "test" if "test" in metrics else "val"
    name, value = next(iter(metrics[role]["mean"].items()))
    number = "undefined" if value is None else f"{value:.4f}"
    return number, f"{role} {name} ({metrics['profile']['name']})"
