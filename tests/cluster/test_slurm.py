"""Sweeps on a real SLURM whose jobs are requeued, killed and lost; `make test-slurm` starts one."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[2]
EPOCHS = 8
OPTIONS = ("experiment=smoke", f"trainer.max_epochs={EPOCHS}")
JOBS = int(os.environ.get("ATTNSEG_JOBS", "100"))  # of the long sweep
LONG_SWEEP = ("attn=qkv,kv", f"seed={','.join(map(str, range(JOBS // 2)))}")
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


def list_processes(node: str) -> Iterator[int]:
    """Yield the processes of a node's jobs, and the daemons that keep them."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            inside = f"SLURMD_NODENAME={node}".encode() in (path / "environ").read_bytes()
            parent = path.parent / (path / "stat").read_text().rsplit(")", 1)[1].split()[1]
            keeper = (parent / "comm").read_text().startswith("slurmstepd")
        except OSError:  # It has ended.
            continue
        if inside:
            yield int(path.name)
            if keeper:
                yield int(parent.name)


def lose_node(node: str) -> None:
    """End a node as a power cut does: its daemon and all that runs on it."""
    daemon = int((Path(os.environ["SLURM_CONF"]).parent / f"slurmd-{node}.pid").read_text())
    for pid in (daemon, *set(list_processes(node))):
        os.kill(pid, signal.SIGKILL)
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")


def running_on(node: str, outputs: Path) -> str | None:
    """Return the id of a job on a node that has trained for an epoch."""
    found = slurm("squeue", "-h", "-r", "-t", "running", "-w", node, "-o", "%i").split()
    numbers = (int(name.rpartition("_")[2]) for name in found)
    return next(filter(None, (training(outputs, number) for number in numbers)), None)


def kill_training(outputs: Path, number: int) -> None:
    """Kill the process that trains a job's run, which the run's lock names."""
    path = next(outputs.glob(f".sweep/*/job-{number}.json"))
    lock = path.parent / json.loads(path.read_text())["folder"] / "lock"
    os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)


def test_of_many_jobs_killed_or_lost_with_their_node_each_is_done_once(tmp_path, monkeypatch):
    """A hundred by default, on two nodes; ATTNSEG_JOBS sets another number."""
    if "node2" not in slurm("sinfo", "-h", "-N", "-o", "%N"):
        pytest.fail("needs a second node: scripts/slurm_node.sh start 2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outputs = tmp_path / "sweep"
    words = command(outputs, *SWEEP, *LONG_SWEEP)
    with (tmp_path / "log").open("w") as log:
        sweep = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for("job 0 trains", lambda: training(outputs, 0))
        kill_training(outputs, 0)
        wait_for("a job trains on node2", lambda: running_on("node2", outputs))
        lose_node("node2")
        lost = wait_for("jobs of node2 are requeued", list_requeued)
        subprocess.run(["slurmd", "-N", "node2"], check=True)
        until = time.monotonic() + 1800
        while sweep.poll() is None and time.monotonic() < until:
            for name in list_requeued():
                start_again(name)
            time.sleep(1)
    finally:
        if sweep.poll() is None:
            slurm("scancel", "--name=attnseg")
            sweep.kill()
            sweep.wait()
    text = (tmp_path / "log").read_text()
    assert sweep.returncode == 5, text
    assert re.search(rf"^1 killed, {JOBS - 1} done$", text, re.MULTILINE), text[-2000:]
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    runs = [json.loads(path.read_text()) for path in outputs.glob("*/*/*/*/run.json")]
    ends = [[attempt["status"] for attempt in run["attempts"]] for run in runs]
    assert len(ends) == JOBS
    assert all(end[-1] == "done" and end.count("done") == 1 for end in ends)
    assert sum(len(end) > 1 for end in ends) >= 2  # the killed one, and those of the lost node
    print(f"{JOBS} jobs, {len(lost)} lost with their node; attempts:", sorted(map(len, ends))[-5:])


def list_requeued() -> list[str]:
    """Return the ids of the jobs that SLURM holds back after their node was lost."""
    lines = slurm("squeue", "-h", "-r", "-t", "pending", "-o", "%i %r").splitlines()
    return [line.split()[0] for line in lines if line.endswith(" BeginTime")]


@pytest.fixture(autouse=True)
def cluster():
    """The SLURM that scripts/slurm_node.sh has started."""
    if "SLURM_CONF" not in os.environ:
        pytest.fail("SLURM_CONF is not set; use make test-slurm")
