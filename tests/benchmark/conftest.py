"""The benchmark on tiny sizes, its gauges too."""

import json
import sys

import pytest

from attnseg import cli
from attnseg.benchmark import machine, suites
from scripts.benchmarks.run import MAINTAINERS_SUITES

SMALL = [
    "model.size=tiny",
    "image_size=32",
    "batch_size=2",
    "repeats=2",
    "phantom_size=tiny",
    "dataset.image_size=32",
    "dataset.batch_size=4",
]


@pytest.fixture(autouse=True)
def small_gauges(monkeypatch):
    monkeypatch.setattr(machine, "SIZES", {"cpu": 64})
    monkeypatch.setattr(machine, "PROBE", 16)
    monkeypatch.setattr(machine, "PRODUCTS", 2)
    monkeypatch.setattr(machine, "COPIED", 1 << 20)


@pytest.fixture
def bench(monkeypatch, tmp_path, capfd):
    """Run the command; return exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suites, "SUITES", {**suites.SUITES, **MAINTAINERS_SUITES})

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark", *SMALL, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.benchmark()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture
def rows(bench, tmp_path):
    """Run a suite and return the rows of all its records."""

    def run(suite, *arguments):
        code, _, err = bench(f"suite={suite}", *arguments)
        assert code == 0, err
        folder = tmp_path / "outputs" / "benchmark" / suite
        assert (folder / f"{suite}.md").read_text().count("\n|") >= 2
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        for record in found:
            assert record["machine"]["threads"] >= 1
            assert {"float32", "copy"} <= set(record["limits"])
        return [row for record in found for row in record["rows"]]

    return run
