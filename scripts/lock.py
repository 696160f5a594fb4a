"""Write requirements/cuda.lock and cpu.lock from pyproject.toml, every file pinned by hash.

Both locks hold the same versions. The CPU lock leaves out CUDA's companion packages (gigabytes) and
lists only builds of PyTorch without CUDA: on Linux, the one that the configured index offers.

    python scripts/lock.py        # needs uv on PATH; run after changing a bound in pyproject.toml
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TORCH = "torch==2.13.0"
COMPANION = re.compile(r"(nvidia-|cuda-|triton==)")
CPU_ONLY_PLATFORMS = ("macosx_14_0_arm64", "win_amd64")  # where PyTorch's default is CPU-only
LOCKS = Path(__file__).resolve().parent.parent / "requirements"


def compile_lock() -> str:
    """Resolve pyproject.toml with all extras for every platform; return the lock's text."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraint:
        constraint.write(TORCH + "\n")
        constraint.flush()
        command = "uv pip compile pyproject.toml --all-extras --universal --generate-hashes"
        command += f" --no-header --no-annotate --python-version 3.11 --quiet -c {constraint.name}"
        done = subprocess.run(
            command.split(), cwd=LOCKS.parent, check=True, capture_output=True, text=True
        )
    return done.stdout


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
    """Write both locks."""
    cuda = compile_lock()
    entries = re.split(r"(?m)^(?=\S)", cuda)
    cpu = "".join(entry for entry in entries if not COMPANION.match(entry))
    # pip prefers a listed build over the CPU-only one, so the CPU lock lists no other for Linux.
    others = [f"--only-binary=:all: --platform {name}".split() for name in CPU_ONLY_PLATFORMS]
    hashes = [cpu_build_hash(), *(cpu_build_hash(*options) for options in others)]
    pinned = " \\\n".join([TORCH, *(f"    --hash=sha256:{digest}" for digest in hashes)])
    cpu = re.sub(rf"(?m)^{re.escape(TORCH)}(.*\n)(    .*\n)+", pinned + "\n", cpu)
    (LOCKS / "cuda.lock").write_text(cuda)
    (LOCKS / "cpu.lock").write_text(cpu)


if __name__ == "__main__":
    main()
