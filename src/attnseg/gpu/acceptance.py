"""The acceptance run of a GPU: sections in processes of their own, with limits and outcomes.

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
from attnseg.processes.gpus import check_driver, visible_gpus
from attnseg.system import die_with_parent

CLOCKS = "clocks.sm,clocks.mem,power.limit,temperature.gpu,clocks_event_reasons.active"


@dataclass(frozen=True)
class Section:
    """A part of the acceptance run.

    Attributes:
        name: as it is printed.
        seconds: its limit in a run of all sections in 480 seconds; fewer sections share the budget.
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
class SectionOutcome:
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
    total = sum(section.seconds for section in sections)
    before, outcomes = read_clocks(settings), []
    for section in sections:
        left = budget - (time.monotonic() - started)
        outcome = run_section(section, settings, min(left, section.seconds * budget / total))
        outcomes.append(outcome)
        usable = outcome.rows and not outcome.rows[0].get("problem")
        if section.name == "machine" and settings.on_gpu and not usable:
            break  # Nothing else could run; a rate that is too low ends nothing.
    failed = [outcome.name for outcome in outcomes if outcome.problems]
    taken = time.monotonic() - started
    print(
        f"{len(outcomes) - len(failed)} PASS, {len(failed)} FAIL, {taken:.0f} s", *failed, sep="; "
    )
    return {
        "device": device,
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["attnseg", *sys.argv[1:]]),
        "budget": budget,
        "seconds": taken,
        "clocks": [before, read_clocks(settings)],
        "sections": [asdict(outcome) for outcome in outcomes],
    }


def run_section(section: Section, settings: Settings, limit: float) -> SectionOutcome:
    """Run one section in a process, print its rows, and end it at its limit."""
    print(f"== {section.name}: {section.passes}", flush=True)
    outcome = SectionOutcome(section.name, limit, section.passes)
    started = time.monotonic()
    context = multiprocessing.get_context("fork")  # A new interpreter would import torch again.
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_rows, args=(section, settings, sender, os.getpid()))
    child.start()
    assert child.pid is not None
    ended = False
    try:
        with contextlib.suppress(OSError):  # The child does the same; one of both is first.
            os.setpgid(child.pid, child.pid)
        sender.close()
        while receiver.poll(max(0.0, started + limit - time.monotonic())):
            try:
                row = receiver.recv()
            except EOFError:
                break
            if row is None:
                ended = True
                break
            outcome.rows.append(row)
            print(f"   {format_row(row)}", flush=True)
            outcome.problems += [f"{row['name']}: {row['problem']}"] if row.get("problem") else []
    finally:  # also if Ctrl-C, which reaches this process only, has raised
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with its loaders and compilers
        child.kill()
        child.join()
    outcome.seconds = time.monotonic() - started
    if not ended:
        late = outcome.seconds >= limit
        reason = f"cut off at its limit of {limit:.0f} s" if late else f"died ({child.exitcode})"
        outcome.problems.append(f"{reason}; see {settings.log}")
    word = "FAIL" if outcome.problems else "PASS"
    print(f"{word} {section.name} ({outcome.seconds:.0f} s)", *outcome.problems, sep="\n     ")
    return outcome


def _send_rows(section: Section, settings: Settings, sender: Connection, parent: int) -> None:
    os.setpgid(0, 0)
    die_with_parent(parent, signal.SIGKILL)
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
    return json.dumps(_spell_nonfinite(report), indent=1, allow_nan=False) + "\n"


def _spell_nonfinite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _spell_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spell_nonfinite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_clocks(settings: Settings) -> str:
    """Return a GPU's clocks, power limit, temperature, and the reasons why it is slowed down."""
    if not settings.on_gpu:
        return ""
    tested = visible_gpus()[0]  # the number or UUID of the one that CUDA calls 0
    command = ["nvidia-smi", "-i", tested, f"--query-gpu={CLOCKS}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return first_line(error)
    return "; ".join(done.stdout.split("\n")[:2])
