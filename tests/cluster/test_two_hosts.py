"""One run on two hosts: network namespaces of this machine, each with a name and an address."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = {"attnseg1": "10.77.0.1", "attnseg2": "10.77.0.2"}
OPTIONS = (
    "experiment=smoke", "trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32",
    "trainer.devices=2", "trainer.max_epochs=2",
)  # fmt: skip
pytestmark = pytest.mark.slurm


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two namespaces that a virtual cable connects, and that know each other by name."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    first, second = HOSTS
    known = "".join(f"{address} {name}\n" for name, address in HOSTS.items())
    try:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "add", name], check=True)
            places = Path("/etc/netns", name)
            places.mkdir(parents=True)
            (places / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        cable = ["ip", "link", "add", "cable", "netns", first, "type", "veth"]
        subprocess.run([*cable, "peer", "name", "cable", "netns", second], check=True)
        for name, address in HOSTS.items():
            for words in (
                f"addr add {address}/24 dev cable", "link set lo up", "link set cable up"
            ):  # fmt: skip
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


def torchrun(folder: Path, *words: str) -> list[str]:
    places = [f"paths.data={folder.parent / 'data'}", f"paths.outputs={folder}"]
    start = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", *words]
    return [*start, str(ROOT / "train.py"), *OPTIONS, *places]


def test_two_hosts_give_what_two_processes_of_one_give(hosts, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = torchrun(tmp_path / "one", "--nproc-per-node=2", "--rdzv-endpoint=localhost:29511")
    subprocess.run(one, cwd=tmp_path, check=True)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "cable")
    words = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-id=test"]
    words += [f"--rdzv-endpoint={HOSTS['attnseg1']}:29500"]
    running = []
    for name, address in HOSTS.items():
        command = torchrun(tmp_path / "two", *words, f"--local-addr={address}")
        inside = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c"]
        inside += [f'hostname {name} && exec "$@"', "sh", *command]
        running.append(subprocess.Popen(inside, cwd=tmp_path))
    try:
        assert [process.wait(timeout=400) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    for file in ("cases.csv", "metrics.json"):
        found = [
            path.read_bytes()
            for folder in ("one", "two")
            for path in (tmp_path / folder).glob(f"*/*/*/*/{file}")
        ]
        assert len(found) == 2 and found[0] == found[1]
