"""Examines Python, the libraries that are installed, and what torch can compute on."""

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from attnseg.doctor.finding import Finding
from attnseg.errors import ConfigError

PROBE_SECONDS = 60  # The first import after an installation reads gigabytes.
# Commands and options that need an extra of the package.
EXTRAS = {
    "cluster": "hydra/launcher=joblib or submitit",
    "export": "attnseg export, attnseg capsule",
    "predict": "attnseg predict of DICOM and of exported networks, attnseg verify",
    "hub": "attnseg publish to=hf://, capsules from hf://",
    "search": "attnseg search",
    "docs": "make site",
    "wandb": "logger=wandb",
    "mlflow": "logger=mlflow",
}


def start_probe() -> subprocess.Popen[str]:
    """Start `probe.py` in a process of its own."""
    command = [sys.executable, "-P", "-m", "attnseg.doctor.probe"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def examine_libraries(probe: subprocess.Popen[str]) -> Iterator[Finding]:
    """Yield the findings on Python, required and optional libraries, and torch's devices."""
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("Python", f"{platform.python_version()}, {system}")
    missing, extras, version = compare_requirements()
    yield Finding("attnseg", version)
    facts, errors = read_probe(probe)
    broken = {name: text for name, text in errors.items() if name not in missing}
    for name, text in {**missing, **broken}.items():
        advice = f"reinstall it: {sys.executable} -m pip install --force-reinstall {name}"
        if name in missing:
            advice = "install attnseg again: `make setup` in a clone, else `pip install WHEEL`"
        yield Finding(name, text, advice, "problem", ConfigError.exit_code)
    if not missing and not broken:
        yield Finding("libraries", "all that training needs")
    if facts:
        yield Finding("torch", f"{facts['version']}, built for {facts['built_for']}")
        yield from examine_devices(facts)
    for name, absent in extras.items():
        text = f"without {', '.join(absent)}, for {EXTRAS[name]}"
        yield Finding(f"[{name}]", text, f"pip install 'attnseg[{name}]'", "note")


def compare_requirements() -> tuple[dict[str, str], dict[str, list[str]], str]:
    """Compare the requirements that attnseg declares with the libraries that are installed.

    Returns:
        A sentence for each required library that is missing or of another version, by name; the
        missing libraries of each incomplete extra; and the version of attnseg.
    """
    missing: dict[str, str] = {}
    extras: dict[str, list[str]] = {}
    try:
        declared = importlib.metadata.requires("attnseg") or []
        version = importlib.metadata.version("attnseg")
    except importlib.metadata.PackageNotFoundError:
        return {}, {}, "not installed, imported from its source"
    for line in declared:
        requirement, _, condition = line.partition(";")
        name, bounds = re.findall(r"^([\w.-]+)(?:\[.*?\])?(.*)", requirement)[0]
        problem = compare_version(name, bounds.strip(" ()"))
        extra = "".join(re.findall(r"extra == ['\"](\w+)", condition))
        if problem and not extra:
            missing[name] = problem
        elif problem and extra in EXTRAS:
            extras.setdefault(extra, []).append(name)
    return missing, extras, version


def compare_version(name: str, bounds: str) -> str:
    """Return why a library does not do: it is missing, or outside the bounds; empty if it does."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # It comes with Lightning, which is then missing, too.
        return ""
    return (
        ""
        if SpecifierSet(bounds).contains(version, prereleases=True)
        else (f"{version} is installed, {bounds} is needed")
    )


def read_probe(probe: subprocess.Popen[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what torch says, and the error by library that cannot be imported."""
    try:
        output, errors_output = probe.communicate(timeout=PROBE_SECONDS)
        end = f"ended by signal {-probe.returncode}" if probe.returncode < 0 else "ended"
    except subprocess.TimeoutExpired:
        probe.kill()
        output, errors_output = probe.communicate()
        end = f"not done in {PROBE_SECONDS} s"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    errors = {line["imported"]: line["error"] for line in lines if line.get("error")}
    errors = {name: f"cannot be imported: {text}"[:300] for name, text in errors.items()}
    last = lines[-1] if lines else {}
    if "importing" in last:
        errors[last["importing"]] = f"cannot be imported: its import {end}"
    elif "torch" not in last and "torch" not in errors:
        reason = (errors_output.strip().splitlines() or [end])[-1]
        errors["torch"] = f"does not answer: {reason}"[:300]
    return last.get("torch", {}), errors


def examine_devices(facts: dict[str, Any]) -> Iterator[Finding]:
    """Yield the findings on GPUs, their driver and bfloat16."""
    driver = read_driver()
    cpu_build = facts["built_for"] == "CPU"
    if facts["gpus"]:
        version = f"; driver {driver}" if driver else ""
        gpus = "; ".join(facts["gpus"])
        yield Finding("GPU", f"{gpus}{version}", "attnseg train trainer=gpu")
    elif driver and cpu_build:
        advice = "to train on it, install torch's CUDA build; `make setup TORCH=cuda` in a clone"
        text = f"driver {driver} is here, but this torch computes on the CPU only"
        yield Finding("GPU", text, advice, "note")
    elif driver:
        text = f"torch, built for {facts['built_for']}, finds no GPU with driver {driver}"
        advice = "update the driver or install a torch for it; until then trainer=cpu"
        yield Finding("GPU", text, advice, "note")
    elif not cpu_build:
        text = f"none: torch is built for {facts['built_for']}, but there is no NVIDIA driver"
        advice = "training runs on the CPU; torch's CPU build does that, and is gigabytes smaller"
        yield Finding("GPU", text, advice, "note")
    else:
        yield Finding("GPU", "none; training runs on the CPU")
    precision, reason = facts["precision"]
    fast = precision == "bf16-mixed"
    advice = "trainer.precision=auto trains faster than the default" if fast else ""
    if not fast and not facts["gpus"]:
        advice = "keep the default, trainer.precision=32"
    yield Finding("bfloat16", reason, advice, "ok" if fast else "note")


def read_driver() -> str:
    """Return the version of the NVIDIA driver; empty if there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()
