"""Write requirements/cuda.lock, cpu.lock and predict.lock, every file pinned by hash.

All hold the same versions. The CPU lock leaves out CUDA's companion packages (gigabytes) and lists
only builds of PyTorch without CUDA: on Linux, the one that the configured index offers. The lock
for prediction has what `attnseg predict` and `attnseg verify` need with a capsule: no torch. What
is pinned stays so unless a bound in pyproject.toml forbids it; delete cuda.lock for newer versions.

    python scripts/lock.py        # needs uv on PATH; run after changing a bound in pyproject.toml
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

TORCH = "torch==2.13.0"
COMPANION = re.compile(r"(nvidia-|cuda-|triton==)")
CPU_ONLY_PLATFORMS = ("macosx_14_0_arm64", "win_amd64")  # where PyTorch's default is CPU-only
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
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraint:
        constraint.write(constraints)
        constraint.flush()
        command = f"uv pip compile {source} {options} --universal --generate-hashes --no-header"
        command += f" --no-annotate --python-version 3.11 --quiet -c {constraint.name} -o {lock}"
        subprocess.run(command.split(), cwd=LOCKS.parent, check=True, stdout=subprocess.DEVNULL)


def predict_requirements() -> str:
    """Return what prediction needs, with the bounds of pyproject.toml, one a line."""
    project = tomllib.loads((LOCKS.parent / "pyproject.toml").read_text())["project"]
    core = [r for r in project["dependencies"] if re.match(r"[\w-]+", r)[0] in PREDICT]
    assert len(core) == len(PREDICT)
    return "\n".join([*core, *project["optional-dependencies"]["predict"]]) + "\n"


def cpu_build_hash(*platform: str) -> str:
    """Download the wheel of `TORCH` that pip prefers; return its SHA-256.

    Args:
        platform: pip's options for another platform than this one.

    Raises:
        SystemExit: pip prefers a Linux build that needs CUDA.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", folder]
        subprocess.run([*command, *platform, TORCH], check=True)
        (wheel,) = Path(folder).iterdir()
        if "linux" in wheel.name and "+cpu" not in wheel.name:
            sys.exit(f"error: pip took {wheel.name}; add an index that offers the CPU build")
        return hashlib.sha256(wheel.read_bytes()).hexdigest()


def main() -> None:
    """Write the locks."""
    compile_lock("pyproject.toml", "--all-extras", LOCKS / "cuda.lock", TORCH + "\n")
    cuda = (LOCKS / "cuda.lock").read_text()
    entries = re.split(r"(?m)^(?=\S)", cuda)
    cpu = "".join(entry for entry in entries if not COMPANION.match(entry))
    # pip prefers a listed build over the CPU-only one, so the CPU lock lists no other for Linux.
    others = [f"--only-binary=:all: --platform {name}".split() for name in CPU_ONLY_PLATFORMS]
    hashes = [cpu_build_hash(), *(cpu_build_hash(*options) for options in others)]
    pinned = " \\\n".join([TORCH, *(f"    --hash=sha256:{digest}" for digest in hashes)])
    cpu = re.sub(rf"(?m)^{re.escape(TORCH)}(.*\n)(    .*\n)+", pinned + "\n", cpu)
    (LOCKS / "cpu.lock").write_text(cpu)
    with tempfile.NamedTemporaryFile("w", suffix=".in") as needed:
        needed.write(predict_requirements())
        needed.flush()
        versions = re.sub(r"(?m) ?\\$|^    .*\n", "", cuda)
        (LOCKS / "predict.lock").unlink(missing_ok=True)
        compile_lock(needed.name, "", LOCKS / "predict.lock", versions)


if __name__ == "__main__":
    main()
