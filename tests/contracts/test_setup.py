"""Set-up on machines where something is missing or breaks, with tiny packages for the real."""

import ast
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import urllib.parse
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VERSION = "{}.{}".format(*sys.version_info)
BACKEND = """
import shutil
def build_editable(folder, *_):
    return shutil.copy("attnseg-1-py3-none-any.whl", folder).split("/")[-1]
"""


def write_wheel(folder: Path, name: str, version: str, **modules: str) -> str:
    """Write a wheel that any Python takes; return its line of a lock."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for module, text in modules.items():
            wheel.writestr(f"{module}.py", text)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def torch_module(version: str, cuda: str | None) -> str:
    return f"__version__ = {version!r}\nclass version:\n    cuda = {cuda!r}\n"


class Machine:
    """A clone whose locks name tiny packages, and the package index that serves them."""

    def __init__(self, folder: Path):
        self.root, self.wheels, self.log = folder / "clone", folder / "wheels", []
        self.behaviour = dict[str, str]()  # of a file's download: cut or hang
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "requirements").mkdir()
        (self.root / "backend.py").write_text(BACKEND)
        write_wheel(self.root, "attnseg", "1", attnseg="")
        (self.root / "pyproject.toml").write_text(
            "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
        )
        self.lock(
            "torch", write_wheel(self.wheels, "torch", "2.13.0", torch=torch_module("2.13.0", "13"))
        )
        self.lock(
            "packages", write_wheel(self.wheels, "tiny", "1", tiny="x = '" + "x" * 100_000 + "'")
        )
        self.lock("torch-cpu", "")
        (folder / "home").mkdir()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.environment = {
            "HOME": str(folder / "home"),
            "PATH": str(folder / "nothing"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{self.server.server_port}/simple",
            "PIP_RETRIES": "0",
            "PYTHON": sys.executable,
        }

    def lock(self, name: str, text: str) -> None:
        (self.root / "requirements" / f"{name}.lock").write_text(text)

    def handler(machine) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = urllib.parse.unquote(self.path).strip("/").split("/")[-1]
                machine.log.append(name)
                files = sorted(machine.wheels.glob(f"{name}-*.whl"))
                links = "".join(f"<a href='/file/{each.name}'>{each.name}</a>" for each in files)
                is_file = self.path.startswith("/file/")
                body = (machine.wheels / name).read_bytes() if is_file else links.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                behaviour = machine.behaviour.get(name.split("-")[0]) if is_file else None
                self.wfile.write(body[: len(body) // 2] if behaviour else body)
                if behaviour == "hang":
                    self.wfile.flush()
                    time.sleep(60)

            def log_message(self, *_):
                pass

        return Handler

    def start(self, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, self.root / "scripts" / "setup.py"],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def setup(self, **environment: str) -> tuple[int, str, str]:
        process = self.start(**environment)
        output, errors = process.communicate()
        print(output + errors)
        return process.returncode, output, errors

    def state(self) -> str:
        return (self.root / ".venv" / ".ready").read_text().strip()

    def refuses(self, code: int, *texts: str, **environment: str) -> None:
        """Assert that set-up ends with one line, which holds these texts."""
        ended, _, errors = self.setup(**environment)
        assert (ended, errors.count("\n")) == (code, 1), errors
        assert errors.startswith("error: ")
        for text in texts:
            assert text in errors


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    yield made
    made.server.shutdown()


def test_the_same_pythons_are_named_everywhere():
    script = (ROOT / "scripts" / "setup.py").read_text()
    supported = ast.literal_eval(re.search(r"SUPPORTED = (.*)", script)[1])[::-1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={supported[0]}"
    classified = [each.partition("Python :: ")[2] for each in project["classifiers"]]
    assert tuple(filter(None, classified)) == supported
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
    assert tuple(workflow["jobs"]["ci"]["strategy"]["matrix"]["python"]) == supported
    named = f"Python {', '.join(supported[:-1])} or {supported[-1]}"
    assert named in (ROOT / "README.md").read_text().replace("\n", " ")


def test_a_machine_whose_network_fails_in_every_way(machine):
    machine.refuses(5, "cannot be reached", PIP_INDEX_URL="http://127.0.0.1:9/simple")
    machine.behaviour["tiny"] = "cut"
    machine.refuses(5, "packages.lock: a download broke off", "run the same command again")
    assert machine.log.count("tiny-1-py3-none-any.whl") == 2  # tried twice
    assert machine.state() == "usable"

    machine.behaviour["tiny"] = "hang"
    killed = machine.start()
    while machine.log.count("tiny-1-py3-none-any.whl") < 3:
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert machine.state() == "unfinished"

    machine.behaviour.clear()
    code, output, _ = machine.setup()
    assert code == 0
    assert output.startswith("Creating .venv")
    assert "no CPU build" in output
    assert "GB to download" in output
    assert "torch 2.13.0, " in output
    ready = machine.state()
    assert ready.endswith(f"{VERSION} cuda")

    asked = len(machine.log)
    assert machine.setup() == (0, "", "")
    assert (machine.state(), len(machine.log)) == (ready, asked)


def test_the_cpu_build_is_taken_where_the_index_has_one(machine, tmp_path):
    machine.refuses(5, "no CPU build", "PIP_EXTRA_INDEX_URL", TORCH="cpu")
    module = torch_module("2.13.0+cpu", None)
    pin = write_wheel(machine.wheels, "torch", "2.13.0+cpu", torch=module).split()[0]
    wrong = f"--hash=sha256:{'0' * 64}"
    machine.lock("torch-cpu", f"{pin} ; python_version == '{VERSION}' {wrong}")
    machine.refuses(5, "torch==2.13.0: a download broke off or was altered")
    machine.lock("torch-cpu", f"{pin} ; python_version == '3.10' {wrong}")
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(f"#!/bin/sh\necho $@ >> {uv}.log\nexit 2\n")
    uv.chmod(0o755)
    code, output, _ = machine.setup(PATH=str(uv.parent))  # no hash is known for this Python
    assert code == 0
    assert "uv cannot install its choice" in output
    assert "--torch-backend auto torch==2.13.0" in Path(f"{uv}.log").read_text()
    assert "torch 2.13.0+cpu, " in output
    assert "default" not in output
    assert machine.state().endswith("cpu")


def test_a_folder_of_wheels_in_place_of_a_network(machine, tmp_path):
    folder = machine.wheels.rename(tmp_path / "wheels of another machine")
    (folder / "tiny-1-py3-none-any.whl").rename(tmp_path / "tiny-1-py3-none-any.whl")
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(f"#!/bin/sh\ntouch {uv}.asked\nexit 2\n")
    uv.chmod(0o755)
    offline = {"WHEELS": str(folder), "PATH": str(uv.parent)}
    machine.refuses(2, "WHEELS=/no/folder: no such folder", WHEELS="/no/folder")
    machine.refuses(5, f"packages.lock: {folder} lacks tiny==1", **offline)
    (tmp_path / "tiny-1-py3-none-any.whl").rename(folder / "tiny-1-py3-none-any.whl")
    (folder / "torch-2.13.0-py3-none-any.whl").rename(tmp_path / "torch-2.13.0-py3-none-any.whl")
    shutil.rmtree(machine.root / ".venv")
    machine.refuses(5, f"torch==2.13.0: {folder} lacks torch==2.13.0", **offline)
    (tmp_path / "torch-2.13.0-py3-none-any.whl").rename(folder / "torch-2.13.0-py3-none-any.whl")
    code, output, _ = machine.setup(**offline)
    assert (code, machine.state().split()[-1]) == (0, "cuda")
    assert "torch 2.13.0, " in output
    assert not machine.log, "the index was asked"
    assert not Path(f"{uv}.asked").exists()


def test_pythons_that_no_lock_serves(machine, tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    machine.refuses(2, "TORCH=rocm: not a build", TORCH="rocm")
    needed = "Python 3.11, 3.12, 3.13 or 3.14 is needed"
    machine.refuses(2, needed, f"{old} is Python 3.9", "PYTHON=<its path>", PYTHON=str(old))
    machine.refuses(2, needed, "/no/python is not there", PYTHON="/no/python")
    old.write_text("#!/bin/sh\necho 3.12\nexit 1\n")  # Debian's without python3.12-venv
    machine.refuses(2, needed, f"{old} is without ensurepip", "python3.12-venv", PYTHON=str(old))
    assert not (machine.root / ".venv").exists()


def test_an_environment_of_other_origin_is_left_alone(machine):
    (machine.root / ".venv").mkdir()
    (machine.root / ".venv" / "mine").touch()
    machine.refuses(2, ".venv: was not made by this command", "move it away")
    assert (machine.root / ".venv" / "mine").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
def test_too_little_disk_and_a_home_that_cannot_be_written(machine):
    place = machine.root / ".venv"
    place.mkdir()
    home = machine.environment["HOME"]
    mounts = [
        ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(place)],
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", home],
    ]
    for mount in mounts:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("file systems cannot be mounted here")
        try:
            if mount[-1] == home:
                assert machine.setup()[0] == 0
                assert machine.state().endswith("cuda")
            else:
                machine.refuses(5, ".venv: needs about 2.2 GB of disk space, and 0.1 GB are free")
        finally:
            subprocess.run(["umount", mount[-1]], check=True)


def test_a_torch_that_is_already_there_is_kept(tmp_path):
    """Install the package as a hosted notebook does, whose torch is another than the locked one."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    info = site / "torch-2.14.1+cu130.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.14.1+cu130\n")
    pip = [python, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--report", "-"]
    (info / "INSTALLER").write_text("conda\n")
    done = subprocess.run([*pip, "-q", "--dry-run", ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chosen = [each["metadata"]["name"] for each in json.loads(done.stdout)["install"]]
    assert chosen == ["attnseg"]
