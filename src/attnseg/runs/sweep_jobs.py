"""The jobs of a sweep and their states, one small file per job below the outputs."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from attnseg.files import write_text

FOLDER = ".sweep"  # Below the outputs; it has a folder for every sweep.


@dataclass(frozen=True)
class Job:
    """One job of a sweep."""

    number: int  # counted from 0
    overrides: tuple[str, ...]  # of the command line
    status: str = "pending"  # or `running`, `done`, `stopped`, `failed` or `killed`
    folder: Path | None = None  # of the run, once there is one
    reason: str = ""  # cause of a failure
    code: int | None = None  # exit code
    seconds: float | None = None  # duration of the last attempt


class Ledger:
    """Reads and writes the jobs of one sweep; each job is written by the process that runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of the sweep

    def open(self, jobs: Sequence[Sequence[str]]) -> None:
        """Add the jobs that are not in the ledger yet as pending."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, overrides in enumerate(jobs):
            if not self._path(number).exists():
                self._write(Job(number, tuple(overrides)))

    def note(self, number: int, **facts: object) -> None:
        """Update the attributes of a job."""
        self._write(replace(self._read(self._path(number)), **facts))  # type: ignore[arg-type]

    def jobs(self) -> list[Job]:
        """Return all jobs, by number."""
        return sorted(map(self._read, self.folder.glob("job-*.json")), key=lambda job: job.number)

    def _path(self, number: int) -> Path:
        return self.folder / f"job-{number}.json"

    def _read(self, path: Path) -> Job:
        facts = json.loads(path.read_text())
        facts["overrides"] = tuple(facts["overrides"])
        if facts["folder"] is not None:
            facts["folder"] = self.folder / facts["folder"]
        return Job(**facts)

    def _write(self, job: Job) -> None:
        facts = asdict(job)
        if job.folder is not None:  # Relative, since the outputs may be moved.
            facts["folder"] = os.path.relpath(job.folder, self.folder)
        write_text(self._path(job.number), json.dumps(facts, indent=1) + "\n")


def list_ledgers(outputs: Path) -> list[Ledger]:
    """Return the ledgers of all sweeps below a folder."""
    return [Ledger(path.parent) for path in sorted(outputs.glob(f"{FOLDER}/*/job-0.json"))]
