"""Cost of variants: parameters, MACs, time and memory of a model with an attention."""

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import wait
from attnseg.benchmark.workload import Workload, measure_in_alternation
from attnseg.config import cost
from attnseg.config.components import attention_component
from attnseg.energy import EnergyMeter
from attnseg.processes.gpus import name_open_gpu

log = logging.getLogger(__name__)

ENERGY_SECONDS = 2.0  # of steps: GPUs count their energy about every tenth of a second
RATIOS = ("forward_ratio", "step_ratio", "forward_mib_ratio", "step_mib_ratio")
MARKERS = "ovDPX^*<>"
COLUMNS = {
    "model": "model",
    "size": "size",
    "attn": "attention",
    "parameters": "parameters",
    "macs": "MACs",
    "attention_macs": "of attention",
    "forward_ms": "forward, ms",
    "step_ms": "training step, ms",
    "forward_mib": "forward, MiB",
    "step_mib": "training step, MiB",
    "step_joules": "training step, J",
    "against": "against",
    "forward_ratio": "forward",
    "step_ratio": "training step",
}


def measure_cost(config: Benchmark, device: torch.device, precisions: Sequence[str]) -> list[Row]:
    """Measure a variant in float32, in alternation with another if `against` names one."""
    name = config.choices["attn"]
    base = None if config.against == name else config.against
    loads = {name: Workload(config, device)}
    if base is not None:
        loads[base] = Workload(config, device, attention_component(base))
    load = loads[name]
    macs, closed, counted = cost.count_all_macs(load.model, load.image)
    row: Row = {
        "model": config.choices["model"],
        "size": config.model.options.get("size", ""),
        "attn": name,
        "parameters": cost.count_parameters(load.model)["total"],
        "macs": macs,
        "attention_macs": closed,
        "attention_macs_counted": counted,
        "against": base,
    }
    row |= measure_in_alternation(loads, config.repeats)[name]
    row["step_joules"] = measure_joules(load.step, device)
    if base is not None:
        log.info(
            "%s against %s, in alternation: forward %.3fx, training step %.3fx, "
            "memory of forward %.3fx, of step %.3fx",
            name,
            base,
            *(row[key] for key in RATIOS),
        )
    return [row]


def measure_joules(step: Callable[[], None], device: torch.device) -> float | None:
    """Return the mean energy of a step; `None` where the device does not count it."""
    with EnergyMeter([name_open_gpu()] if device.type == "cuda" else None) as meter:
        if meter.source is None:
            log.info("Energy is not measured: %s", meter.reason)
            return None
        started, steps = time.monotonic(), 0
        while time.monotonic() < started + ENERGY_SECONDS:
            step()
            wait()
            steps += 1
    return None if meter.joules is None else meter.joules / steps


def plot_cost(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw training step time over parameters: a colour per model, a marker per attention."""
    rows = [row for record in records for row in record["rows"]]
    figure = Figure(figsize=(7.5, 4.5), dpi=100, layout="constrained")
    axis = figure.subplots()
    models = dict.fromkeys(row["model"] for row in rows)
    attentions = dict.fromkeys(row["attn"] for row in rows)
    colours = {name: f"C{i}" for i, name in enumerate(models)}
    markers = dict(zip(attentions, itertools.cycle(MARKERS), strict=False))
    for row in rows:
        style = {"color": colours[row["model"]], "marker": markers[row["attn"]]}
        axis.scatter(row["parameters"] / 1e6, row["step_ms"]["median"], alpha=0.8, **style)
    for name, colour in colours.items():
        axis.scatter([], [], color=colour, marker="s", label=name)
    for name, marker in markers.items():
        axis.scatter([], [], color="grey", marker=marker, label=name)
    axis.set_xlabel("parameters, millions")
    axis.set_ylabel("training step, ms")
    axis.set_yscale("log")
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(folder / "pareto.png", metadata={"Software": None})
