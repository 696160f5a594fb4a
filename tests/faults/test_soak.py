"""The soak of `scripts/benchmarks/soak.py`: its fits, and a short one."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.soak import BOUNDS, Sample, fit_slopes

SCRIPT = Path(__file__).parents[2] / "scripts/benchmarks/soak.py"


def make_samples(leak: str, by_job: float) -> list[Sample]:
    """Return samples of three parents, of which something grows by the job."""
    samples = []
    for parent in range(3):
        for job in range(40):
            values = {"memory_mb": 200.0 + parent, "open_files": 20.0, "processes": 1.0}
            runs = 40 * parent + job + 1
            values["disk_mb"] = 2.0 * runs
            if leak == "disk_mb":
                values[leak] += by_job * runs**2
            elif leak:
                values[leak] += by_job * job
            samples.append(Sample(float(runs), parent, job, runs, **values))
    return samples


def test_nothing_grows_in_a_sweep_that_is_flat():
    assert all(abs(value) < 1e-6 for value in fit_slopes(make_samples("", 0)).values())


@pytest.mark.parametrize(
    ("leak", "by_job", "name"),
    [
        ("memory_mb", 1.0, "memory_mb"),
        ("open_files", 0.1, "open_files"),
        ("processes", 0.1, "processes"),
        ("disk_mb", 0.1, "disk_mb_per_run"),
    ],
)
def test_a_leak_is_found(leak, by_job, name):
    slopes = fit_slopes(make_samples(leak, by_job))
    assert {key for key, value in slopes.items() if value > BOUNDS[key]} == {name}


@pytest.mark.slow
def test_a_short_soak(tmp_path):
    command = [sys.executable, SCRIPT, "--minutes", "2", "--jobs", "4", "--folder", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not list(tmp_path.iterdir())
