"""The suites by name, and how each is run: every workload in a process of its own.

Imports no torch: the processes that measure begin without anything in memory.
"""

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnseg.engine.schema import Benchmark

log = logging.getLogger(__name__)
WORKLOADS = Path(__file__).parents[1] / "configs" / "workload"


@dataclass(frozen=True)
class Suite:
    """What is measured together.

    Attributes:
        title: of its table.
        each: the overrides it is run with, one process for each; none for all in one.
    """

    title: str
    each: tuple[tuple[str, ...], ...] = ()


def workloads(*more: str) -> tuple[tuple[str, ...], ...]:
    """Return overrides for every workload, the smallest name first."""
    names = sorted(path.stem for path in WORKLOADS.glob("*.yaml"))
    return tuple((f"workload={name}", *more) for name in names)


SUITES = {
    "step": Suite("A training step", workloads()),
}


def parts(config: Benchmark, words: Sequence[str]) -> list[list[str]]:
    """Return the command lines that a benchmark is divided into; none if it is run as it is.

    Args:
        config: of the benchmark.
        words: its command line; one that names a model or a workload is not divided.
    """
    if config.suite == "all":
        return [[*words, f"suite={name}"] for name in SUITES]
    chosen = {word.partition("=")[0] for word in words}
    each = SUITES[config.suite].each
    return [[*words, *more] for more in each if not chosen & {"workload", "model"}]


def label(config: Benchmark) -> str:
    """Return the name of what is measured: the workload's, or the variant's."""
    choices, options = config.choices, config.model.options
    if "workload" in choices:
        return choices["workload"]
    size = options.get("size", "")
    match = f"-{config.model.match}" if config.model.match else ""
    return f"{choices['model']}-{size}-{choices['attn']}{match}"


def run(config: Benchmark) -> None:
    """Measure one suite, write its record, and renew the suite's table.

    Raises:
        ConfigError: the device is not there, or an option is wrong.
    """
    from attnseg.benchmark import machine, report

    module = importlib.import_module(f"attnseg.benchmark.{config.suite}")
    device = machine.choose(config.device, config.threads)
    precisions = machine.worthwhile(config.precisions, device)
    rows = module.measure(config, device, precisions)
    folder = Path(config.outputs, config.suite)
    record = {
        "label": label(config),
        "rows": rows,
        "repeats": config.repeats,
        "machine": machine.describe(device),
        "limits": machine.limits(device, config.repeats, precisions),
    }
    report.write(folder, label(config), record)
    found = report.records(folder)
    text = f"{report.table(module.COLUMNS, found)}\n\n{report.conditions(found)}\n"
    report.write_text(folder / f"{config.suite}.md", text)
    log.info("%s\n", report.table(module.COLUMNS, [record]))
    log.info("Written: %s", folder / f"{config.suite}.md")
