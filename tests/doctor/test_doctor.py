"""The examination: good and bad machines, broken installations, and its output."""

import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from attnseg.doctor import libraries, machine
from attnseg.doctor.finding import Finding, findings_to_json, format_findings

ROOT = Path(__file__).parents[2]
FACTS = {
    "version": "2.13.0",
    "built_for": "CPU",
    "gpus": [],
    "threads": 2,
    "precision": [32, "this CPU has no instructions for bfloat16"],
}


def test_every_extra_has_its_commands():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(libraries.EXTRAS) == set(project["optional-dependencies"]) - {"dev"}


def test_requirements_are_compared(monkeypatch):
    declared = [
        "torch>=2.11",
        "numpy<1",
        "nowhere>=3",
        "optuna>=999 ; extra == 'search'",
        "nowhere ; extra == 'dev'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    missing, extras, version = libraries.compare_requirements()
    assert set(missing) == {"numpy", "nowhere"}
    assert missing["numpy"].endswith("is installed, <1 is needed")
    assert missing["nowhere"] == "not installed"
    assert extras == {"search": ["optuna"]}
    assert version == importlib.metadata.version("attnseg")


class Ended:
    """A probe that has ended."""

    def __init__(self, *lines: dict, code: int = 0, errors: str = "") -> None:
        self.output = "".join(json.dumps(line) + "\n" for line in lines), errors
        self.returncode = code

    def communicate(self, timeout: float = 0) -> tuple[str, str]:
        return self.output


@pytest.mark.parametrize(
    ("probe", "name", "text"),
    [
        (Ended({"importing": "cv2"}, code=-4), "cv2", "its import ended by signal 4"),
        (Ended({"imported": "torch", "error": "OSError: libc10"}, code=1), "torch", "libc10"),
        (Ended({"imported": "torch", "error": None}, code=1, errors="no GPU"), "torch", "no GPU"),
        (Ended(code=1, errors="a\nno such module"), "torch", "no such module"),
    ],
)
def test_broken_libraries_are_named(probe, name, text):
    facts, errors = libraries.read_probe(probe)
    assert not facts and list(errors) == [name] and text in errors[name]


@pytest.mark.parametrize(
    ("facts", "driver", "level", "text"),
    [
        ({}, "", "ok", "training runs on the CPU"),
        ({}, "580.1", "note", "this torch computes on the CPU only"),
        ({"built_for": "CUDA 12.8"}, "", "note", "there is no NVIDIA driver"),
        ({"built_for": "CUDA 12.8"}, "470.1", "note", "finds no GPU with driver 470.1"),
        (
            {"built_for": "CUDA 12.8", "gpus": ["H200, 139 GiB"]},
            "580.1",
            "ok",
            "H200, 139 GiB; driver",
        ),
    ],
)
def test_devices(monkeypatch, facts, driver, level, text):
    monkeypatch.setattr(libraries, "read_driver", lambda: driver)
    gpu, numbers = libraries.examine_devices(FACTS | facts)
    assert gpu.level == level and text in gpu.text
    assert numbers.level == "note" and "no instructions" in numbers.text
    fast = FACTS | {"precision": ["bf16-mixed", "AVX512_BF16"]}
    assert list(libraries.examine_devices(fast))[1].level == "ok"


def test_limits(monkeypatch):
    for soft, level, code in ((4096, "ok", 0), (256, "note", 0), (32, "problem", 5)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, soft=soft: (soft, 524288))
        finding = machine.examine_open_files()
        assert (finding.level, finding.exit_code) == (level, code)
        assert ("ulimit -n 1024" in finding.advice) == (level != "ok")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    assert "--ulimit nofile" in machine.examine_open_files().advice
    for free, level in ((20e9, "ok"), (2e9, "note"), (1e8, "problem"), (None, "ok")):
        monkeypatch.setattr(machine, "free_memory", lambda free=free: free)
        assert machine.examine_memory().level == level


def test_load(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for load, levels in ((2.0, []), (7.0, ["note"])):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert [finding.level for finding in machine.examine_load()] == levels
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert not list(machine.examine_load())


def test_threads(monkeypatch):
    monkeypatch.setattr(machine, "examine_load", lambda: iter(()))
    monkeypatch.setattr(machine, "count_usable_cores", lambda: 8)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert list(machine.examine_processors())[1].advice.startswith("unset OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "container_quota", lambda: 2.0)
    assert "OMP_NUM_THREADS=2" in list(machine.examine_processors())[1].advice
    monkeypatch.setattr(machine, "container_quota", lambda: None)
    assert list(machine.examine_processors())[1].level == "ok"


def test_folders(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    fine = machine.examine_folder("paths.data", str(tmp_path / "new" / "deeper"))
    assert fine.level in ("ok", "note") and list(tmp_path.iterdir()) == [tmp_path / "file"]
    broken = machine.examine_folder("paths.data", str(tmp_path / "file" / "below"))
    assert (broken.level, broken.exit_code) == ("problem", 5)
    assert "Not a directory" in broken.text and "paths.data=DIR" in broken.advice
    monkeypatch.setattr(machine, "LEAST_DISK", float("inf"))
    assert machine.examine_folder("paths.data", str(tmp_path)).level == "problem"


def test_output_fits_80_columns_and_is_json():
    findings = [Finding("folder", "word " * 40, "do this " * 30, "problem", 5), Finding("a", "b")]
    text = format_findings(findings)
    assert max(map(len, text.splitlines())) <= 80 and text.count("problem") == 1
    first, second = json.loads(findings_to_json(findings))
    assert first["exit_code"] == 5 and second == {
        "subject": "a", "text": "b", "advice": "", "level": "ok", "exit_code": 0,
    }  # fmt: skip


LOADER = "libc10.so: cannot open shared object file"


def run_attnseg(folder: Path, *arguments: str, **modules: str) -> subprocess.CompletedProcess[str]:
    """Run a command where some libraries are replaced by other code."""
    for name, code in modules.items():
        (folder / "broken").mkdir(exist_ok=True)
        (folder / "broken" / f"{name}.py").write_text(code)
    path = os.pathsep.join([str(folder / "broken"), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "attnseg", *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip


def test_this_machine(tmp_path):
    done = run_attnseg(tmp_path, "doctor", "format=json", "paths.data=here")
    assert done.returncode in (0, 5), done.stderr
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert findings["torch"]["level"] == "ok" and "here (paths.data)" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("library", "code"), [("torch", f"raise OSError('{LOADER}')"), ("hydra", "raise ImportError")]
)
def test_a_broken_library_is_named_and_others_are_examined(tmp_path, library, code):
    done = run_attnseg(tmp_path, "doctor", **{library: code})
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "open files" in done.stdout
    if library == "torch":
        assert "cannot be imported: OSError: libc10.so: " in done.stdout
    done = run_attnseg(tmp_path, "train", "phantom_size=tiny")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be imported" in done.stderr and "attnseg doctor" in done.stderr
