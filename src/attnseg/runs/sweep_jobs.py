"""What became of each job of a sweep: one small file per job, beside the run folders."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from attnseg.files import write_text

FOLDER = ".sweep"  # below the outputs; a folder in it for every sweep


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: from 0.
        overrides: what sets it apart, as on the command line.
        status: `pending`, `running`, `done`, `stopped`, `failed` or `killed`.
        folder: its run folder, once it has one.
        reason: why it failed.
        code: exit code.
        seconds: that its last attempt took.
    """

    number: int
    overrides: tuple[str, ...]
    status: str = "pending"
    folder: Path | None = None
    reason: str = ""
    code: int | None = None
    seconds: float | None = None


class Ledger:
    """The jobs of one sweep, written by whichever process does them.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, jobs: Sequence[Sequence[str]]) -> None:
        """Note the jobs that are not known yet as pending."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, overrides in enumerate(jobs):
            if not self._path(number).exists():
                self._write(Job(number, tuple(overrides)))

    def note(self, number: int, **facts: object) -> None:
        """Note facts of a job."""
        self._write(replace(self._read(self._path(number)), **facts))  # type: ignore[arg-type]

    def jobs(self) -> list[Job]:
        """Return all jobs in their order."""
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
        if job.folder is not None:  # relative: the outputs may move
            facts["folder"] = os.path.relpath(job.folder, self.folder)
        write_text(self._path(job.number), json.dumps(facts, indent=1) + "\n")


def ledgers(outputs: Path) -> list[Ledger]:
    """Return the sweeps whose runs are below a folder."""
    return [Ledger(path.parent) for path in sorted(outputs.glob(f"{FOLDER}/*/job-0.json"))]
