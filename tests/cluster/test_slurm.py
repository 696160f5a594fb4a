"""A sweep on a real SLURM whose jobs are requeued as they train; `make test-slurm` starts one."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[2]
EPOCHS = 8
OPTIONS = ("experiment=smoke", f"trainer.max_epochs={EPOCHS}")
SWEEP = ("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
AXES = ("attn=qkv,kv", "seed=0,1")
PATIENCE = 400  # seconds

pytestmark = pytest.mark.slurm


def command(folder: Path, *words: str) -> list[str]:
    places = [f"paths.data={folder.parent / 'data'}", f"paths.outputs={folder}"]
    return [sys.executable, str(ROOT / "train.py"), *words, *OPTIONS, *places]


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def wait_for(what, condition):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.2)
    return found


def training(outputs: Path, number: int) -> str | None:
    """Return the SLURM id of a sweep's job once it has trained for an epoch."""
    for path in outputs.glob(f".sweep/*/job-{number}.json"):
        folder = json.loads(path.read_text())["folder"]
        if folder and (path.parent / folder / "history.csv").is_file():
            running = slurm("squeue", "-h", "-r", "-t", "running", "-o", "%i").split()
            return next((name for name in running if name.endswith(f"_{number}")), None)
    return None


def start_again(name: str) -> bool:
    """Have a requeued job start at once, not in the two minutes that SLURM waits."""
    if slurm("squeue", "-h", "-r", "-j", name, "-o", "%T") != "PENDING\n":
        return False
    slurm("scontrol", "update", f"jobid={name}", "StartTime=now")
    return True


def weights(run: Path) -> str:
    """Return a digest of the final weights, free of how the file is packed."""
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    return digest.hexdigest()


def by_choice(outputs: Path) -> dict[tuple[str, int], Path]:
    found = {}
    for path in outputs.glob("*/*/*/*/run.json"):
        facts = json.loads(path.read_text())
        found[facts["choices"]["attn"], facts["seed"]] = path.parent
    return found


def test_requeued_jobs_end_as_if_undisturbed(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outputs = tmp_path / "sweep"
    with (tmp_path / "log").open("w") as log:
        sweep = subprocess.Popen(
            command(outputs, *SWEEP, *AXES), cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        # One is requeued by SLURM, as when a node is drained, one by its launcher, as before a
        # time limit or on preemption.
        name = wait_for("job 0 trains", lambda: training(outputs, 0))
        slurm("scontrol", "requeue", name)
        wait_for("job 0 is requeued", lambda: start_again(name))
        other = wait_for("job 1 trains", lambda: training(outputs, 1))
        slurm("scancel", "--signal=USR2", other)
        wait_for("job 1 is requeued", lambda: start_again(other))
        assert sweep.wait(timeout=PATIENCE) == 0, (tmp_path / "log").read_text()
    finally:
        if sweep.poll() is None:
            slurm("scancel", "--name=attnseg")
            sweep.kill()
            sweep.wait()
    assert re.search(r"^4 done$", (tmp_path / "log").read_text(), re.MULTILINE)
    runs = by_choice(outputs)
    assert len(runs) == 4
    attempts = {}
    for choice, run in runs.items():
        facts = json.loads((run / "run.json").read_text())
        attempts[choice] = [attempt["status"] for attempt in facts["attempts"]]
        history = pd.read_csv(run / "history.csv")
        assert history["epoch"].tolist() == list(range(1, EPOCHS + 1))
    assert attempts["qkv", 0][-1] == attempts["qkv", 1][-1] == "done"
    assert len(attempts["qkv", 0]) == len(attempts["qkv", 1]) == 2
    assert attempts["kv", 0] == attempts["kv", 1] == ["done"]

    for number in (0, 1):
        plain = tmp_path / "plain"
        subprocess.run(
            command(plain, "attn=qkv", f"seed={number}"), cwd=tmp_path, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        undisturbed, requeued = by_choice(plain)["qkv", number], runs["qkv", number]
        assert weights(undisturbed) == weights(requeued)
        for file in ("metrics.json", "cases.csv"):
            assert (undisturbed / file).read_bytes() == (requeued / file).read_bytes()

    before = {run: (run / "run.json").stat().st_mtime_ns for run in runs.values()}
    again = subprocess.run(
        command(outputs, *SWEEP, *AXES), cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert before == {run: (run / "run.json").stat().st_mtime_ns for run in runs.values()}


@pytest.fixture(autouse=True)
def cluster():
    """The SLURM that scripts/slurm_node.sh has started."""
    if "SLURM_CONF" not in os.environ:
        pytest.fail("SLURM_CONF is not set; use make test-slurm")
