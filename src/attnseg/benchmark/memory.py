"""Memory of a training step: the peak of the process, and what a step holds while it runs."""

from collections.abc import Sequence
from functools import partial

import torch

from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.workload import Workload
from attnseg.config import cost

COLUMNS = {
    "label": "model",
    "precision": "precision",
    "batch": "batch",
    "weights_mib": "weights, MiB",
    "peak_gib": "peak of the process, GiB",
    "published": "published code",
    "step_mib": "held during a step, MiB",
    "forward_mib": "held during a forward pass, MiB",
}


def measure_memory(config: Benchmark, device: torch.device, precisions: Sequence[str]) -> list[Row]:
    """Measure a single precision, since the peak of a process cannot be divided among several."""
    (name,) = precisions
    load = Workload(config, device)
    for _ in range(2):  # the second one holds the optimizer's state, too
        load.step(name)
    row: Row = {
        "precision": name,
        "batch": load.batch_size,
        "peak_gib": cost.peak_memory() / 2**30,
        "weights_mib": 4 * cost.count_parameters(load.model)["total"] / 2**20,
    }
    for kind, work in (("step", load.step), ("forward", load.forward)):
        held = cost.transient_memory(partial(work, name), device.type == "cuda")
        row[f"{kind}_mib"] = held / 2**20
    if config.published and name == "float32":
        row["published"] = config.published.memory
    return [row]
