"""The acceptance run of a GPU: sections in processes of their own, each with a limit and a verdict.

A section yields rows, which are printed as they come, so that one that is cut off at its limit has
told what it knew. A row with a `problem` makes its section fail.
"""

import contextlib
import json
import math
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from attnseg.errors import ConfigError, first_line
from attnseg.gpu import equality, machine, speed
from attnseg.gpu.settings import Row, Settings
from attnseg.processes.gpus import check_driver

CLOCKS = "clocks.sm,clocks.mem,power.limit,temperature.gpu,clocks_event_reasons.active"


@dataclass(frozen=True)
class Section:
    """A part of the acceptance run.

    Attributes:
        name: as it is printed.
        seconds: its limit in a run of 480 seconds.
        measure: yields its rows.
        passes: what a row must show.
    """

    name: str
    seconds: int
    measure: Callable[[Settings], Iterator[Row]]
    passes: str


SECTIONS = (
    Section("machine", 15, machine.measure_rates, "the card is one that this PyTorch is built for"),
    Section("formats", 50, equality.compare_precisions, "logits within each format's rounding"),
    Section("devices", 30, equality.compare_devices, "gradients of CPU and GPU agree to 1e-3"),
    Section("steps", 35, speed.step_every_pair, "finite losses, no `math` attention"),
    Section("compilation", 80, speed.compile_models, "no graph break, losses within 1 %"),
    Section("determinism", 60, equality.repeat_and_resume, "repeated and resumed runs are equal"),
    Section("throughput", 110, speed.measure_throughput, "strict steps take at most 15 % longer"),
    Section("memory", 25, machine.measure_largest_batch, "the usual batch fits"),
    Section("loaders", 30, machine.measure_loaders, "reported"),
    Section("evaluation", 20, speed.measure_evaluation, "reported"),
    Section("learning", 20, equality.train_in_each_precision, "16-bit losses within 3 %"),
)


@dataclass
class Verdict:
    """The outcome of a section; `problems` are empty if it passed."""

    name: str
    limit: float
    passes: str
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run_acceptance(
    device: str, folder: str, budget: float, sections: Sequence[Section] = SECTIONS
) -> dict[str, Any]:
    """Run sections on `cuda` or `cpu` within a number of seconds, and return everything found.

    Raises:
        ConfigError: there is no GPU, or it or its driver is too old for this PyTorch.
    """
    if device == "cuda" and torch.cuda.device_count() == 0:
        raise ConfigError(
            "device: no GPU found on this machine; use device=cpu to rehearse without one"
        )
    if device == "cuda":
        check_driver()
    settings, started = Settings(device, folder), time.monotonic()
    total = sum(section.seconds for section in SECTIONS)
    before, verdicts = read_clocks(settings), []
    for section in sections:
        left = budget - (time.monotonic() - started)
        verdict = run_section(section, settings, min(left, section.seconds * budget / total))
        verdicts.append(verdict)
        if section.name == "machine" and verdict.problems and settings.on_gpu:
            break  # Nothing else could run.
    failed = [verdict.name for verdict in verdicts if verdict.problems]
    taken = time.monotonic() - started
    print(
        f"{len(verdicts) - len(failed)} PASS, {len(failed)} FAIL, {taken:.0f} s", *failed, sep="; "
    )
    return {
        "device": device,
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["attnseg", *sys.argv[1:]]),
        "budget": budget,
        "seconds": taken,
        "clocks": [before, read_clocks(settings)],
        "sections": [asdict(verdict) for verdict in verdicts],
    }


def run_section(section: Section, settings: Settings, limit: float) -> Verdict:
    """Run one section in a process, print its rows, and end it at its limit."""
    print(f"== {section.name}: {section.passes}", flush=True)
    verdict = Verdict(section.name, limit, section.passes)
    started = time.monotonic()
    context = multiprocessing.get_context("fork")  # A new interpreter would import torch again.
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_rows, args=(section, settings, sender))
    child.start()
    sender.close()
    ended = False
    while receiver.poll(max(0.0, started + limit - time.monotonic())):
        try:
            row = receiver.recv()
        except EOFError:
            break
        if row is None:
            ended = True
            break
        verdict.rows.append(row)
        print(f"   {format_row(row)}", flush=True)
        verdict.problems += [f"{row['name']}: {row['problem']}"] if row.get("problem") else []
    verdict.seconds = time.monotonic() - started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid or 0, signal.SIGKILL)  # with its loaders and compilers
    child.join()
    if not ended:
        late = verdict.seconds >= limit
        reason = f"cut off at its limit of {limit:.0f} s" if late else f"died ({child.exitcode})"
        verdict.problems.append(f"{reason}; see {settings.log}")
    word = "FAIL" if verdict.problems else "PASS"
    print(f"{word} {section.name} ({verdict.seconds:.0f} s)", *verdict.problems, sep="\n     ")
    return verdict


def _send_rows(section: Section, settings: Settings, sender: Connection) -> None:
    os.setpgid(0, 0)
    with Path(settings.log).open("a", buffering=1) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        sys.stdout = sys.stderr = log
        try:
            for row in section.measure(settings):
                sender.send(row)
        except Exception as error:  # Whatever it is, the other sections go on.
            traceback.print_exc()
            problem = f"{type(error).__name__}: {first_line(error)}"
            sender.send({"name": "error", "problem": problem})
    sender.send(None)
    sender.close()
    signal.pause()  # The parent ends this process, and those that it has started.


def format_row(row: Row) -> str:
    """Return a row as one line of text."""
    values = [
        f"{key} {format_figure(v)}" for key, v in row.items() if key not in ("name", "problem")
    ]
    problem = f"  <- {row['problem']}" if row.get("problem") else ""
    return f"{row['name']}: {', '.join(values)}{problem}"


def format_figure(value: object) -> str:
    """Return a value with three significant digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def format_report(report: dict[str, Any]) -> str:
    """Return a report as a Markdown page."""
    lines = ["# Acceptance run of a GPU", "", f"    {report['command']}", ""]
    lines += [f"{report['date']}, {report['seconds']:.0f} s.", ""]
    if report["device"] == "cpu":
        lines += ["A rehearsal on a CPU with tiny networks: no figure here is one of a GPU.", ""]
    for section in report["sections"]:
        word = "FAIL" if section["problems"] else "PASS"
        lines += [f"## {section['name']}: {word}", ""]
        lines += [f"Passes if: {section['passes']}. Took {section['seconds']:.0f} s.", ""]
        lines += [f"- {format_row(row)}" for row in section["rows"]]
        lines += [f"- **{problem}**" for problem in section["problems"]] + [""]
    for when, clocks in zip(("before", "after"), report["clocks"], strict=True):
        lines += [f"`nvidia-smi` {when} the run: {clocks}.", ""] if clocks else []
    return "\n".join(lines)


def report_to_json(report: dict[str, Any]) -> str:
    """Return everything found as JSON; a number that is not finite becomes its name."""
    return json.dumps(_name_numbers(report), indent=1, allow_nan=False) + "\n"


def _name_numbers(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _name_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_name_numbers(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_clocks(settings: Settings) -> str:
    """Return a GPU's clocks, power limit, temperature, and the reasons why it is slowed down."""
    if not settings.on_gpu:
        return ""
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return first_line(error)
    return "; ".join(done.stdout.split("\n")[:2])
