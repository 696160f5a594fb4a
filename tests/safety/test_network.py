"""Nothing asks the network for anything, at import or in a run."""

import shutil
import subprocess
import sys

import pytest

from tests.limits import HANG

SMOKE = ["experiment=smoke", "trainer.max_epochs=1", "dataset.limit_cases=3"]
# Forbids connections before anything else is imported; local sockets are not the network.
FORBID = """
import socket, sys
def refuse(self, place, *rest):
    if self.family != socket.AF_UNIX:
        open("connected", "a").write(f"{place}\\n")
        raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = refuse
real = socket.getaddrinfo
def look_up(host, *rest, **more):
    open("connected", "a").write(f"{host}\\n")
    raise socket.gaierror("no network here")
socket.getaddrinfo = look_up
"""


def run(folder, *command):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG)


def test_the_guard_sees_connections(tmp_path):
    for line in (
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.socket().connect(('::', 9))",
    ):
        done = run(tmp_path, sys.executable, "-c", f"{FORBID}\n{line}")
        assert done.returncode == 1
        assert (tmp_path / "connected").exists()
        (tmp_path / "connected").unlink()


def unshare() -> list[str]:
    """Return how to start a program without any network device but loopback, if that is allowed."""
    for words in (["unshare", "-n"], ["unshare", "-rn"]):
        if (
            shutil.which("unshare")
            and not subprocess.run([*words, "true"], capture_output=True).returncode
        ):
            return words
    return []


@pytest.mark.skipif(not unshare(), reason="this machine does not let a process leave its network")
def test_a_process_can_leave_its_network(tmp_path):
    probe = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    assert "unreachable" in run(tmp_path, *unshare(), sys.executable, "-c", probe).stderr


def test_a_run_connects_to_nothing_and_needs_no_network(tmp_path):
    """Isolated from the network where the machine allows it, and watched in any case."""
    code = FORBID + "from attnseg.cli import train\ntrain()\n"
    done = run(tmp_path, *unshare(), sys.executable, "-c", code, *SMOKE)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "connected").exists()


def test_importing_everything_connects_to_nothing(tmp_path):
    code = (
        FORBID
        + """
import importlib, pkgutil, attnseg
for module in pkgutil.walk_packages(attnseg.__path__, "attnseg."):
    if not module.name.endswith("worker"):
        importlib.import_module(module.name)
assert sum(name.startswith("attnseg.") for name in sys.modules) > 80
"""
    )
    done = run(tmp_path, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "connected").exists()
