"""Suites of measurements: their division into processes, their runs and their tables.

Imports no torch: every process that measures starts with an empty memory.
"""

import importlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnseg.benchmark.options import Benchmark
from attnseg.config.errors import nearest
from attnseg.config.folder import NO_ATTENTION, attentions_of, list_choices, read_defaults
from attnseg.errors import ConfigError
from attnseg.files import write_text

log = logging.getLogger(__name__)

Choice = dict[str, str]  # values by key, as on the command line
WORKLOADS: list[Choice] = [{"workload": name} for name in list_choices("workload")]
VARIANTS: list[Choice] = [
    {"model": model, "attn": attn}
    for model in list_choices("model")
    for attn in attentions_of(model)
]
PRECISIONS: list[Choice] = [{"precisions": "[float32]"}, {"precisions": "[bf16]"}]


@dataclass(frozen=True)
class Suite:
    """Measurements that share a table.

    A suite called `step` is the function `measure_step` in the module `step` of `package`, with
    `COLUMNS` for its table and perhaps `plot_step`.
    """

    title: str  # heading of its table
    # Choices to vary unless the command line sets them; each combination has its own process.
    axes: tuple[list[Choice], ...] = ()
    package: str = "attnseg.benchmark"
    command: str = "attnseg benchmark"
    in_all: bool = True  # whether `suite=all` includes it


SUITES = {
    "step": Suite("A training step", (WORKLOADS,)),
    "latency": Suite("One image", (WORKLOADS,)),
    "memory": Suite("Memory", (WORKLOADS, PRECISIONS)),
    "cost": Suite("Variants", (VARIANTS,)),
    "checkout": Suite("Published code on this machine", in_all=False),
}


def split_suite(name: str, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each process of a suite, or of `all`; none if one is enough.

    An axis is left out if the command line's overrides set one of its keys. An attention that they
    choose leaves out the workloads of models without attention.

    Raises:
        ConfigError: no such suite.
    """
    if name == "all":
        return [[*overrides, f"suite={each}"] for each, suite in SUITES.items() if suite.in_all]
    if name not in SUITES:
        raise ConfigError(f"suite: {name!r} is not allowed; {nearest(name, [*SUITES, 'all'])}")
    values = dict(override.partition("=")[::2] for override in overrides)
    chosen = {*values, *(["workload"] if "model" in values else [])}
    axes = [
        _workloads_with(values) if axis is WORKLOADS else axis
        for axis in SUITES[name].axes
        if not chosen & axis[0].keys()
    ]
    if not axes:
        return []
    return [
        [*overrides, *(f"{key}={value}" for choice in choices for key, value in choice.items())]
        for choices in itertools.product(*axes)
    ]


def _workloads_with(values: Choice) -> list[Choice]:
    """Return the workloads whose models can have the attentions that the command line chooses."""
    attentions = {values[key] for key in ("attn", "against") if key in values} - {"null"}
    if not attentions:
        return WORKLOADS
    fitting, others = list[Choice](), []
    for choice in WORKLOADS:
        workload = choice["workload"]
        model = next(
            entry["override /model"]
            for entry in read_defaults("workload", workload)
            if isinstance(entry, dict) and "override /model" in entry
        )
        attends = attentions_of(model) != [NO_ATTENTION]
        if all((attention != NO_ATTENTION) == attends for attention in attentions):
            fitting.append(choice)
        else:
            others.append(workload)
    if others:
        log.info("Left out, since their models cannot have this attention: %s", ", ".join(others))
    return fitting


def subject_name(config: Benchmark) -> str:
    """Return the name of the measured workload or variant, and of published code beside it."""
    choices = config.choices
    match = f"-{config.model.match}" if config.model.match else ""
    size = config.model.options.get("size", "")
    name = choices.get("workload") or f"{choices['model']}-{size}-{choices['attn']}{match}"
    if config.suite == "checkout" and config.checkout.network:
        name += f"-{config.checkout.network.replace(':', '.')}"
    return name


def run_suite(config: Benchmark) -> None:
    """Measure one suite, write its record, and renew the suite's table and plot.

    Raises:
        ConfigError: the device is missing, or an option is wrong.
    """
    from attnseg.benchmark import machine, report  # imports torch
    from attnseg.processes.malloc import keep_freed_memory

    keep_freed_memory()  # as in training and prediction
    device = machine.choose_device(config.device, config.threads)
    precisions = machine.computed_precisions(config.precisions, device)
    if not precisions:
        return
    name, suite = config.suite, SUITES[config.suite]
    module = importlib.import_module(f"{suite.package}.{name}")
    label = subject_name(config)
    record = {
        "label": label,
        "rows": getattr(module, f"measure_{name}")(config, device, precisions),
        "repeats": config.repeats,
        "machine": machine.describe_machine(device),
        "limits": machine.measure_limits(device, config.repeats, precisions),
    }
    folder = Path(config.outputs, name)
    precision = f"-{precisions[0]}" if PRECISIONS in suite.axes else ""
    report.write_record(folder, f"{label}{precision}", record)
    records = report.read_records(folder)
    path = folder / f"{name}.md"
    text = f"{report.format_table(module.COLUMNS, records)}\n\n{report.format_conditions(records)}"
    write_text(path, f"{text}\n")
    if plot := getattr(module, f"plot_{name}", None):
        plot(records, folder)
    log.info(
        "%s\n%s\nWritten: %s",
        report.format_table(module.COLUMNS, [record]),
        report.format_conditions([record]),
        path,
    )


def join_tables(config: Benchmark) -> None:
    """Write the tables of all suites as one page, `benchmarks.md`, with the command of each."""
    folder, sections = Path(config.outputs), []
    for name, suite in SUITES.items():
        table = folder / name / f"{name}.md"
        if table.is_file():
            command = f"    {suite.command} suite={name}"
            sections.append(f"## {suite.title}\n\n{command}\n\n{table.read_text()}")
    write_text(folder / "benchmarks.md", "\n".join(sections))
    log.info("Written: %s", folder / "benchmarks.md")
