"""The suites by name, and how each is run: every workload in a process of its own.

Imports no torch: the processes that measure begin with nothing in memory.
"""

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnseg.config.schema import Benchmark
from attnseg.files import write_text
from attnseg.help import names

log = logging.getLogger(__name__)

Words = tuple[str, ...]  # of a command line


@dataclass(frozen=True)
class Suite:
    """What is measured together, by a module of the suite's name.

    Attributes:
        title: of its table.
        each: what is measured if nothing is chosen, a process for each.
        divided: what every one of them is divided into, a process for each.
    """

    title: str
    each: tuple[Words, ...] = ()
    divided: tuple[Words, ...] = ()


EVERY = tuple((f"workload={name}",) for name in names("workload"))
VARIANTS = tuple(
    (f"model={model}", f"attn={attn}") for model in names("model") for attn in names("attn")
)
SUITES = {
    "step": Suite("A training step", EVERY),
    "latency": Suite("One image", EVERY),
    "memory": Suite("Memory", EVERY, (("precisions=[float32]",), ("precisions=[bf16]",))),
    "volume": Suite("A whole volume", (("workload=dae_former",),)),
    "scaling": Suite("Scaling", (("workload=dae_former",),)),
    "loading": Suite("Loading"),
    "overhead": Suite("The engine against a bare loop"),
    "safety": Suite("What safety costs"),
    "startup": Suite("Start-up"),
    "cost": Suite("Variants", VARIANTS),
}


def parts(config: Benchmark, words: Sequence[str]) -> list[list[str]]:
    """Return the command lines that a benchmark is divided into; none if it is run as it is.

    Args:
        config: of the benchmark.
        words: its command line; what it chooses itself is not chosen anew.
    """
    if config.suite == "all":
        return [[*words, f"suite={name}"] for name in SUITES]
    if config.suite not in SUITES:
        return []
    suite, chosen = SUITES[config.suite], keys(words)
    each = suite.each or [()]
    if chosen & {"model", *keys(each[0])}:
        each = [()]
    divided = suite.divided or [()]
    if chosen & keys(divided[0]):
        divided = [()]
    found = [[*words, *one, *part] for one in each for part in divided]
    return [] if found == [[*words]] else found


def keys(words: Sequence[str]) -> set[str]:
    """Return what a command line sets."""
    return {word.partition("=")[0] for word in words}


def label(config: Benchmark) -> str:
    """Return the name of what is measured: the workload's, or the variant's."""
    choices = config.choices
    match = f"-{config.model.match}" if config.model.match else ""
    size = config.model.options.get("size", "")
    return choices.get("workload") or f"{choices['model']}-{size}-{choices['attn']}{match}"


def run(config: Benchmark) -> None:
    """Measure one suite, write its record, and renew the suite's table and plot.

    Raises:
        ConfigError: the device is not there, or an option is wrong.
    """
    from attnseg.benchmark import machine, report  # imports torch
    from attnseg.processes.malloc import keep_freed_memory

    keep_freed_memory()  # as in training and prediction
    device = machine.choose(config.device, config.threads)
    if config.suite == "check":
        importlib.import_module("attnseg.benchmark.check").check(config, device)
        return
    precisions = machine.worthwhile(config.precisions, device)
    if not precisions:
        return
    module = importlib.import_module(f"attnseg.benchmark.{config.suite}")
    record = {
        "label": label(config),
        "rows": module.measure(config, device, precisions),
        "repeats": config.repeats,
        "machine": machine.describe(device),
        "limits": machine.limits(device, config.repeats, precisions),
    }
    folder = Path(config.outputs, config.suite)
    alone = f"-{precisions[0]}" if SUITES[config.suite].divided else ""
    report.write_record(folder, f"{label(config)}{alone}", record)
    found = report.records(folder)
    path = folder / f"{config.suite}.md"
    write_text(path, f"{report.table(module.COLUMNS, found)}\n\n{report.conditions(found)}\n")
    if hasattr(module, "plot"):
        module.plot(found, folder)
    log.info(
        "%s\n%s\nWritten: %s",
        report.table(module.COLUMNS, [record]),
        report.conditions([record]),
        path,
    )


def join(config: Benchmark) -> None:
    """Write the tables of all suites as one page, `benchmarks.md`, with the command of each."""
    folder, sections = Path(config.outputs), []
    for name, suite in SUITES.items():
        table = folder / name / f"{name}.md"
        if table.is_file():
            command = f"    .venv/bin/python scripts/benchmark.py suite={name}"
            sections.append(f"## {suite.title}\n\n{command}\n\n{table.read_text()}")
    write_text(folder / "benchmarks.md", "\n".join(sections))
    log.info("Written: %s", folder / "benchmarks.md")
