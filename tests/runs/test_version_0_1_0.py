"""Run folders written by version 0.1.0, taken by the commands of this version.

The two runs in `version_0_1_0/` were trained by commit 84d4f97 as their `run.json` says, with a
model of 4 blocks and 8 channels so that they are small. Previews and `last.ckpt`, which no command
here reads, were left out, and the name of the machine's system was shortened. `case1_day0.csv` is
what that version predicted for a case of the phantom with the run `kv`.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from attnseg import cli
from attnseg.runs.run_folder import RunFolder, list_run_folders
from tests.prediction.test_runs import read_codes

WRITTEN = Path(__file__).with_name("version_0_1_0")
MASKS = WRITTEN / "case1_day0.csv"


@pytest.fixture
def runs(call, tmp_path) -> dict[str, RunFolder]:
    """Copies of the runs by attention, below the working folder."""
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    found = list_run_folders(Path("outputs"), "*/*/*/*")
    return {run.facts.choices["attn"]: run for run in found}


def test_they_are_read(runs):
    assert sorted(runs) == ["kv", "qkv"]
    run = runs["kv"]
    assert (run.status, run.facts.id, run.seed) == ("done", run.name, 0)
    assert run.facts.versions["attnseg"] == "0.1.0"
    assert run.config.model.options["dim"] == 8
    assert run.option("attn") == "kv"
    assert len(run.history) == run.config.trainer.max_epochs == 8
    assert set(run.cases["split"]) == {"val", "test"}
    assert run.metrics["profile"]["digest"] == run.facts.profile["digest"]
    assert dict(run.split["role"].value_counts()) == {"train": 4, "val": 1, "test": 1}
    parameters = sum(weight.numel() for weight in run.model().parameters())
    assert parameters == run.facts.parameters["total"]


def test_status_lists_them(call, runs):
    answer = call(command=cli.status)
    assert (answer.code, answer.err) == (0, "")
    assert "2 done" in answer.out
    for run in runs.values():
        assert run.name in answer.out
        assert f"{run.metrics['test']['mean']['dice']:.4f}" in answer.out


def test_they_are_compared(call, runs):
    answer = call("runs=[outputs/phantom/setr/*/*]", "baseline=qkv", command=cli.compare)
    assert answer.code == 0, answer.err
    (table,) = Path("outputs").rglob("variants.csv")
    assert set(pd.read_csv(table)["variant"]) == {"kv", "qkv"}


@pytest.mark.parametrize("attn", ["kv", "qkv"])
def test_they_score_as_they_did(call, runs, attn):
    run = runs[attn]
    answer = call(f"run={run}", "split=val", command=cli.evaluate)
    assert answer.code == 0, answer.err
    again = json.loads((run.evaluation / "val/metrics.json").read_text())
    for name, value in run.metrics["val"]["mean"].items():
        now = again["profiles"]["strict"]["mean"][name]
        assert now == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_they_predict_alike(call, runs, phantom):
    source = phantom / "train/case1/case1_day0/scans"
    answer = call(
        f"run={runs['kv']}", f"input={source}", "output=out", "overlays=false", command=cli.predict
    )
    assert answer.code == 0, answer.err
    now, then = (read_codes(path, (60, 72)) for path in (Path("out/masks/case1_day0.csv"), MASKS))
    assert then.mean() > 0.01
    assert (now != then).mean() < 0.001  # probabilities that are 0.5 to the last bits
