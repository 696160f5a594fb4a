"""The state of every run and of every job of a sweep, read without torch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attnseg.errors import DataError
from attnseg.runs.run_folder import RunFolder, list_run_folders
from attnseg.runs.sweep_jobs import Job, list_ledgers


@dataclass(frozen=True)
class State:
    """State of one run, or of a job that has no run folder yet."""

    name: str  # of the run folder below the outputs, or the overrides that are specific to a job
    status: str  # of `RunFolder.status` or `Job.status`, or `unreadable`
    epoch: int = 0  # number of epochs done
    epochs: int | None = None  # number of epochs configured; `None` if not known yet
    left: float | None = None  # estimated seconds of training left; `None` if it is not training
    score: str = ""  # of the test set, or of the validation cases if the test set is closed
    measure: str = ""  # split, metric and profile of the score
    reason: str = ""  # cause of a failure


def print_status(outputs: Path) -> None:
    """Print the state of every run below a folder, and of the jobs that have no run yet.

    Raises:
        DataError: there is no such folder.
    """
    if not outputs.is_dir():
        raise DataError(f"{outputs}: no such folder; give that of the runs as paths.outputs=DIR")
    jobs = [job for ledger in list_ledgers(outputs) for job in ledger.jobs()]
    waiting = [job_state(job) for job in jobs if job.folder is None]
    runs = list_run_folders(outputs, "*/*/*/*")
    print_states([*(run_state(run, str(run.path.relative_to(outputs))) for run in runs), *waiting])


def run_state(run: RunFolder, name: str) -> State:
    """Return the state of one run; `unreadable` if a file is missing or damaged."""
    try:
        status, epochs = run.status, int(run.raw_config["trainer"]["max_epochs"])
        done, left = len(run.history), None
        if status == "training" and done:
            left = float(run.history["seconds"].mean()) * (epochs - done)
        return State(name, status, done, epochs, left, *_read_score(run), run.facts.reason or "")
    except DataError as error:
        return State(name, "unreadable", reason=str(error))
    except (ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        return State(name, "unreadable", reason=f"{type(error).__name__}: {reason}")


def job_state(job: Job, same: Collection[str] = ()) -> State:
    """Return the state of a sweep's job, which is that of its run if it has one.

    Its name is made of its overrides without `same`, those that all jobs have.
    """
    name = " ".join(override for override in job.overrides if override not in same)
    run = None if job.folder is None else RunFolder(job.folder)
    if run is None or not run.exists:
        status = "cut off" if job.status == "running" else job.status
        return State(name, status, reason=job.reason)
    state = run_state(run, name)
    if job.status == "killed" and state.status == "cut off":
        return State(name, "killed", state.epoch, state.epochs, reason=job.reason)
    return state


def print_states(states: Sequence[State]) -> None:
    """Print states as a table, and the number of runs in each status."""
    measures = {one.measure for one in states if one.measure}
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
        for one in states
    ]
    table = Table()
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in ("epochs", "left", header) else "left",
            overflow="fold",
            no_wrap=name not in ("reason", header),
        )
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    console = Console()
    console.print(table)
    names = dict.fromkeys(one.status for one in states)
    counts = (f"{sum(one.status == name for one in states)} {name}" for name in names)
    console.print(", ".join(counts) or "no runs", highlight=False)


def _read_score(run: RunFolder) -> tuple[str, str]:
    if not run.metrics_file.is_file():
        return "", ""
    role = "test" if "test" in run.metrics else "val"
    name, value = next(iter(run.metrics[role]["mean"].items()))
    number = "undefined" if value is None else f"{value:.4f}"
    return number, f"{role} {name} ({run.profile['name']})"
