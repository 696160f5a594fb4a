"""Write the locks of requirements/, which serve Python 3.11 to 3.14, every file pinned by hash.

packages.lock has all packages but PyTorch. torch.lock has PyTorch's default build and, for Linux,
the CUDA packages that it needs; torch-cpu.lock has those Linux builds without CUDA that the
configured index offers. predict.lock has what `attnseg predict` and `attnseg verify` need with a
capsule: no torch. What is pinned stays so unless a bound in pyproject.toml forbids it; delete
torch.lock and packages.lock for newer versions.

    python scripts/lock.py        # needs uv on PATH; run after changing a bound in pyproject.toml
"""

import hashlib
import itertools
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from setup import SUPPORTED

TORCH = "torch==2.13.0"
OF_TORCH = re.compile(r"(torch|triton)==|nvidia-|cuda-")
MACHINES = ("x86_64", "aarch64")
# highdicom requires it, but only pydicom uses it, to read JPEG-LS; no wheel is for Python 3.14.
OVERRIDES = "pyjpegls ; python_version < '3.14'\n"
LOCKS = Path(__file__).resolve().parent.parent / "requirements"


# Of the core dependencies, those that prediction from a capsule imports.
PREDICT = (
    "hydra-core", "omegaconf", "pydantic", "pyyaml", "rich",
    "numpy", "scipy", "opencv-python-headless", "pillow", "nibabel", "matplotlib",
)  # fmt: skip


def compile_lock(source: str, options: str, lock: Path, constraints: str) -> None:
    """Resolve requirements for every platform, and write the lock.

    Args:
        source: file of the requirements.
        options: of uv, beside ours.
        lock: where pins are kept from, too.
        constraints: versions, one a line.
    """
    with (
        tempfile.NamedTemporaryFile("w", suffix=".txt") as constraint,
        tempfile.NamedTemporaryFile("w", suffix=".txt") as override,
    ):
        for file, text in ((constraint, constraints), (override, OVERRIDES)):
            file.write(text)
            file.flush()
        command = f"uv pip compile {source} {options} --universal --generate-hashes --no-header"
        command += f" --no-annotate --quiet --python-version {SUPPORTED[-1]}"
        command += f" -c {constraint.name} --overrides {override.name} -o {lock}"
        subprocess.run(command.split(), cwd=LOCKS.parent, check=True, stdout=subprocess.DEVNULL)


def predict_requirements() -> str:
    """Return what prediction needs, with the bounds of pyproject.toml, one a line."""
    project = tomllib.loads((LOCKS.parent / "pyproject.toml").read_text())["project"]
    core = [r for r in project["dependencies"] if re.match(r"[\w-]+", r)[0] in PREDICT]
    assert len(core) == len(PREDICT)
    return "\n".join([*core, *project["optional-dependencies"]["predict"]]) + "\n"


def cpu_builds() -> Iterator[str]:
    """Download every Linux build of `TORCH` without CUDA that the index offers; yield its pin."""
    for python, machine in itertools.product(reversed(SUPPORTED), MACHINES):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", folder]
            command += ["--only-binary=:all:", "--python-version", python]
            command += ["--platform", f"manylinux_2_28_{machine}", TORCH + "+cpu"]
            offered = subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
            print(f"{TORCH}+cpu, Python {python}, {machine}: {'pinned' if offered else 'none'}")
            if offered:
                (wheel,) = Path(folder).iterdir()
                digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                where = f"platform_machine == '{machine}' and sys_platform == 'linux'"
                pin = f"{TORCH}+cpu ; python_version == '{python}' and {where}"
                yield f"{pin} \\\n    --hash=sha256:{digest}\n"


def main() -> None:
    """Write the locks."""
    with tempfile.NamedTemporaryFile("w+", suffix=".lock") as lock:
        for part in ("packages", "torch"):
            path = LOCKS / f"{part}.lock"
            lock.write(path.read_text() if path.exists() else "")
        lock.flush()
        compile_lock("pyproject.toml", "--all-extras", Path(lock.name), TORCH + "\n")
        whole = Path(lock.name).read_text()
    entries = [entry for entry in re.split(r"(?m)^(?=\S)", whole) if entry]
    of_torch = [entry for entry in entries if OF_TORCH.match(entry)]
    (LOCKS / "torch.lock").write_text("".join(of_torch))
    (LOCKS / "packages.lock").write_text("".join(e for e in entries if e not in of_torch))
    (LOCKS / "torch-cpu.lock").write_text("".join(cpu_builds()))
    with tempfile.NamedTemporaryFile("w", suffix=".in") as needed:
        needed.write(predict_requirements())
        needed.flush()
        versions = re.sub(r"(?m) ?\\$|^    .*\n", "", whole)
        (LOCKS / "predict.lock").unlink(missing_ok=True)
        compile_lock(needed.name, "", LOCKS / "predict.lock", versions)


if __name__ == "__main__":
    main()
