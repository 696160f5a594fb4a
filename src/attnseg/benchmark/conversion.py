"""Time, memory and energy of a converted network's forward pass, beside its parent's."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from attnseg.benchmark.cost import measure_joules
from attnseg.benchmark.timing import alternate
from attnseg.config import cost
from attnseg.errors import AttnsegError, first_line
from attnseg.files import write_json
from attnseg.layers.factored import fuse_factors
from attnseg.processes.gpus import leased
from attnseg.runs.run_folder import RunFolder

log = logging.getLogger(__name__)
REPEATS = 10


def measure_conversion(folder: Path) -> None:
    """Add to the report of a conversion what a forward pass of one image takes, in float32.

    Parent and converted network take turns, on the device of the training. The report is left as
    it is if it has these figures, and if several processes trained the network. A network that
    cannot be measured is no failure of its conversion: a warning says why.
    """
    run = RunFolder(folder)
    if not run.conversion_file.exists():
        return  # of several processes, not the first
    report = json.loads(run.conversion_file.read_text())
    if "forward_ms" in report["cost"]["converted"] or "image" not in report:
        return
    if run.config.trainer.devices > 1:
        return
    try:
        with leased(run.config) as lease:
            lease()
            _measure(run, report)
    except (AttnsegError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        log.warning("Time and memory of the networks are not measured: %s", first_line(error))


def _measure(run: RunFolder, report: dict[str, Any]) -> None:
    """Measure both networks, write the figures into the report, and print them."""
    device = torch.device(run.config.trainer.device_type)
    image = torch.zeros(1, *report["image"], device=device)
    parent = RunFolder(report["parent"]["run"])
    works = {
        name: _forward(each.model(), image) for name, each in (("parent", parent), ("run", run))
    }
    timed = alternate(works, REPEATS)
    before, after = (report["cost"][name] for name in ("parent", "converted"))
    for name, figures in (("parent", before), ("run", after)):
        held = cost.transient_memory(works[name], device.type == "cuda")
        figures["forward_ms"] = 1e3 * median(sample.seconds for sample in timed[name])
        figures["forward_mib"] = held / 2**20
        figures["forward_joules"] = measure_joules(works[name], device)
    write_json(run.conversion_file, report)
    for key, unit in (("forward_ms", "ms"), ("forward_mib", "MiB"), ("forward_joules", "J")):
        if after[key] is not None:
            log.info("%.3g %s per image instead of %.3g", after[key], unit, before[key])


def _forward(model: nn.Module, image: Tensor) -> Callable[[], None]:
    return partial(_segment, fuse_factors(model).to(image.device).eval(), image)


@torch.inference_mode()
def _segment(model: nn.Module, image: Tensor) -> None:
    model(image)
