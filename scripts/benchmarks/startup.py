"""Time until commands answer: whole processes, from start to exit."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial

import torch

from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import alternate, median_and_range

TORCH = "torch was imported"
# As train.py and `attnseg` do; says at the end whether torch was needed.
PROGRAM = f"""
import sys
try:
    from attnseg import cli
    cli.{{}}()
finally:
    if "torch" in sys.modules:
        print({TORCH!r})
"""
COMMANDS = {
    "python (an empty program)": ("pass",),
    "train.py --help": (PROGRAM.format("train"), "--help"),
    "train.py optimizer.lrr=1 (wrong)": (PROGRAM.format("train"), "optimizer.lrr=1"),
    "attnseg status": (PROGRAM.format("main"), "status"),
}
COLUMNS = {"label": "command", "seconds": "seconds", "code": "exit code", "torch": "imports torch"}


def measure_startup(
    config: Benchmark, device: torch.device, precisions: Sequence[str]
) -> list[Row]:
    """Time each command in processes of its own, in alternation, in an empty folder."""
    ended: dict[str, subprocess.CompletedProcess[str]] = {}

    def start(name: str, folder: str) -> None:
        command = [sys.executable, "-c", *COMMANDS[name]]
        ended[name] = subprocess.run(command, cwd=folder, capture_output=True, text=True)

    with tempfile.TemporaryDirectory() as folder:
        works = {name: partial(start, name, folder) for name in COMMANDS}
        samples = alternate(works, config.repeats)
    return [
        {
            "label": name,
            "seconds": median_and_range(sample.seconds for sample in found),
            "code": ended[name].returncode,
            "torch": "yes" if TORCH in ended[name].stdout else "no",
        }
        for name, found in samples.items()
    ]
