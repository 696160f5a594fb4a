"""A sweep of tiny runs with kills for a long time: nothing may grow, nothing may be left behind.

    python scripts/benchmarks/soak.py [--minutes 60] [--jobs 200]

Runs one sweep in a process of its own. At random moments the process of a job, of the sweep, or all
of them are killed, or asked to stop, and the same command goes on. When all jobs are done, a new
sweep of other seeds begins, until the time is over; the last one is finished without kills. Every
second, memory, open files and processes of the parent that goes from job to job are noted, and the
disk that everything takes.

Ends with exit code 1 if, over the life of the parents, memory, open files or processes grow (the
slope of a line through their medians by job, see `BOUNDS`); if the disk per finished run grows; or
if a lock, a temporary file, a process, or a run that is not done once is left. Writes `soak.csv`
and `soak.png` to `outputs/benchmark/`.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

REPOSITORY = Path(__file__).parents[2]
TINY = (
    "experiment=smoke", "trainer.max_epochs=1", "trainer.limit_batches=1", "logger=none",
    "dataset.limit_cases=3", "trainer.keep_pictures=false", "attn=qkv,kv",
)  # fmt: skip
SETTLED = 1  # jobs of a parent after which its memory should stay as it is
# The largest slopes by job that count as flat; a leak of one array, file or child exceeds them.
BOUNDS = {"memory_mb": 0.5, "open_files": 0.02, "processes": 0.02, "disk_mb_per_run": 0.05}
KINDS = (
    ("job", signal.SIGKILL), ("job", signal.SIGTERM), ("sweep", signal.SIGTERM),
    ("all", signal.SIGKILL),
)  # fmt: skip


@dataclass
class Sample:
    """What the parent of a sweep has at a moment."""

    seconds: float  # since the soak began
    parent: int  # process id
    jobs: int  # that this parent has ended
    runs: int  # that are done, of all sweeps
    memory_mb: float  # of its own
    open_files: int
    processes: int  # that it has started and that still run
    disk_mb: float


def list_descendants(pid: int) -> Iterator[int]:
    """Yield all processes that a process has started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from list_descendants(child)


def own_memory(pid: int) -> float:
    """Return the megabytes of a process that are not files', shared with its forks or not."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def disk_use(folder: Path) -> float:
    """Return the megabytes that the files in a folder take."""
    blocks = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                blocks += os.lstat(os.path.join(root, name)).st_blocks
            except OSError:  # It has just been replaced.
                continue
    return blocks * 512 / 2**20


def count_done(outputs: Path) -> int:
    """Return the number of runs that are done."""
    return sum(1 for _ in outputs.glob("*/*/*/*/metrics.json"))


class Soak:
    """Starts the sweep again and again, disturbs it and notes what its parent takes."""

    def __init__(self, folder: Path, jobs: int, seed: int) -> None:
        self.folder, self.jobs, self.sweep = folder, jobs, 0
        self.rng = np.random.default_rng(seed)
        self.started = time.monotonic()
        self.samples: list[Sample] = []
        self.disturbed: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()
        self.sessions: list[int] = []

    def start(self) -> subprocess.Popen[bytes]:
        """Start the present sweep, or go on with it, in a session of its own."""
        first = self.sweep * self.jobs // 2
        seeds = ",".join(map(str, range(first, first + self.jobs // 2)))
        command = [sys.executable, REPOSITORY / "train.py", "-m", *TINY, f"seed={seeds}"]
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=output, stderr=output, start_new_session=True
            )
        self.sessions.append(process.pid)
        return process

    def follow(self, process: subprocess.Popen[bytes], until: float) -> None:
        """Sample a sweep until it ends; disturb it at a random moment before `until`."""
        outputs = self.folder / "outputs"
        before = count_done(outputs)
        moment = time.monotonic() + self.rng.uniform(20, 120)
        while process.poll() is None:
            time.sleep(1)
            now, done = time.monotonic(), count_done(outputs)
            try:
                sample = Sample(
                    now - self.started, process.pid, done - before, done,
                    own_memory(process.pid), len(os.listdir(f"/proc/{process.pid}/fd")),
                    len(list(list_descendants(process.pid))), disk_use(self.folder),
                )  # fmt: skip
            except OSError:  # It has just ended.
                continue
            self.samples.append(sample)
            if moment <= now < until:
                self.disturb(process)
                moment = now + self.rng.uniform(20, 120)
        self.codes[process.wait()] += 1

    def disturb(self, process: subprocess.Popen[bytes]) -> None:
        """Send a signal to a job, to the sweep or to all of its processes."""
        kind, number = KINDS[int(self.rng.integers(len(KINDS)))]
        children = list(list_descendants(process.pid))
        victims = {"job": children[:1], "sweep": [process.pid], "all": [process.pid, *children]}
        for pid in victims[kind]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        self.disturbed[kind] += 1

    def run(self, minutes: float) -> None:
        """Run sweeps until the time is over, and the last one to its end."""
        until = self.started + 60 * minutes
        failures = 0  # one after another, of sweeps that nothing disturbed
        while failures < 3:
            process, disturbed = self.start(), self.disturbed.total()
            self.follow(process, until)
            if process.returncode == 0:
                failures = 0
                if time.monotonic() >= until:
                    return
                self.sweep += 1
            elif self.disturbed.total() == disturbed:
                failures += 1
        raise SystemExit(f"error: the sweep ends by itself with exit code {process.returncode}")


def list_remains(soak: Soak) -> list[str]:
    """Return what should not be there at the end."""
    outputs = soak.folder / "outputs"
    remains = [str(path) for path in outputs.rglob("lock")]
    remains += [str(path) for path in outputs.glob("*/*/*/*/**/.*")]
    remains += [str(path) for path in soak.folder.glob("data/prepared/*/.part-*")]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = int(path.read_text().rsplit(")", 1)[1].split()[3])
        except OSError:
            continue
        if session in soak.sessions:
            remains.append(f"process {path.parent.name}")
    expected = (soak.sweep + 1) * (soak.jobs // 2) * 2
    ends = [
        [attempt["status"] for attempt in json.loads(path.read_text())["attempts"]]
        for path in outputs.glob("*/*/*/*/run.json")
    ]
    if len(ends) != expected:
        remains.append(f"{len(ends)} runs in place of {expected}")
    remains += [f"a run that ended as {end}" for end in ends if end.count("done") != 1]
    return remains


def slope(points: list[tuple[int, float]]) -> float:
    """Return the slope of a line through the median of each job's values; NaN for two jobs."""
    jobs = sorted({job for job, _ in points})
    if len(jobs) < 3:
        return float("nan")
    medians = [float(np.median([value for j, value in points if j == job])) for job in jobs]
    return float(np.polyfit(jobs, medians, 1)[0])


def fit_slopes(samples: list[Sample]) -> dict[str, float]:
    """Return how much each quantity grows by job, or run.

    Memory, files and processes are those of all parents while a job runs, each less its own first
    median. A value is NaN if there were too few jobs to tell.
    """
    slopes = {}
    for name in ("memory_mb", "open_files", "processes"):
        points: list[tuple[int, float]] = []
        for parent in {sample.parent for sample in samples}:
            own = [s for s in samples if s.parent == parent and s.jobs >= SETTLED and s.processes]
            if own:
                first = np.median([getattr(s, name) for s in own if s.jobs == own[0].jobs])
                points += [(s.jobs, getattr(s, name) - float(first)) for s in own]
        slopes[name] = slope(points)
    later = [s for s in samples if s.runs >= SETTLED]
    slopes["disk_mb_per_run"] = slope([(s.runs, s.disk_mb / s.runs) for s in later])
    return slopes


def write_results(samples: list[Sample]) -> None:
    """Write the samples as a table and the four curves as a picture."""
    folder = REPOSITORY / "outputs" / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "soak.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)])
        writer.writeheader()
        writer.writerows(map(asdict, samples))
    figure, axes = plt.subplots(4, 1, figsize=(7, 8), sharex=True, layout="constrained")
    minutes = [sample.seconds / 60 for sample in samples]
    names = {
        "memory_mb": "memory, MB", "open_files": "open files", "processes": "processes",
        "disk_mb": "disk, MB",
    }  # fmt: skip
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        axis.plot(minutes, [getattr(sample, name) for sample in samples], ".", markersize=2)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    figure.savefig(folder / "soak.png", dpi=120)


def main() -> int:
    """Soak; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=200, help="of a sweep")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--folder", type=Path, help="of everything; a temporary one by default")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=options.folder))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    soak = Soak(folder, options.jobs, options.seed)
    try:
        soak.run(options.minutes)
    finally:
        write_results(soak.samples)
    slopes, remains = fit_slopes(soak.samples), list_remains(soak)
    done = count_done(folder / "outputs")
    print(f"{done} runs done; disturbed {dict(soak.disturbed)}; exit codes {dict(soak.codes)}")
    for name, value in slopes.items():
        known = "too few jobs to tell" if np.isnan(value) else f"grows by {value:.3g} by job"
        print(f"{name}: {known}; {BOUNDS[name]} is allowed")
    for remain in remains:
        print(f"left behind: {remain}")
    grown = any(value > BOUNDS[name] for name, value in slopes.items())
    if grown or remains:
        print(f"see {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
