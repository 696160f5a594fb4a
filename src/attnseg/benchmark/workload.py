"""A configured model with a batch of noise, whose training step and forward pass are measured."""

from collections.abc import Mapping
from functools import cached_property
from statistics import median

import torch
from torch import nn

from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import alternate, median_and_range
from attnseg.config import cost
from attnseg.config.budget import build_model
from attnseg.config.build import build
from attnseg.config.components import optimizer_factory
from attnseg.config.nodes import Component
from attnseg.layers.factored import fuse_factors
from attnseg.models.model import SegmentationModel
from attnseg.training.module import parameter_groups


class Workload:
    """A configured model, loss and optimizer with one batch of noise.

    Args:
        config: model, loss, optimizer and shapes.
        device: CPU or GPU.
        attn: replaces the configured attention.
        batch_size: replaces the configured one.
        model: replaces the configured one.
    """

    def __init__(
        self,
        config: Benchmark,
        device: torch.device,
        attn: Component | None = None,
        batch_size: int | None = None,
        model: SegmentationModel | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.image = (config.in_channels, *config.image_size)
        self.batch_size = batch_size or config.batch_size
        model = model or build_model(
            config.model,
            attn or config.attn,
            config.in_channels,
            config.num_classes,
            config.image_size,
        )
        self.model = model.to(device)
        self.loss: nn.Module = build("loss", config.loss, overlapping=False).to(device)
        self.optimizer = optimizer_factory(config)(params=parameter_groups(self.model))
        self.images = torch.randn(self.batch_size, *self.image, device=device)
        shape = (self.batch_size, *config.image_size)
        self.target = torch.randint(config.num_classes, shape, device=device)

    def autocast(self, precision: str) -> torch.autocast:
        """Return the autocast context of a precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def step(self, precision: str = "float32") -> None:
        """Train on the batch: forward, loss, backward, optimizer."""
        self.model.train()
        self.optimizer.zero_grad()
        with self.autocast(precision):
            outputs = self.model.training_outputs(self.images)
            loss = sum(self.loss(output, self.target) for output in outputs)
        loss.backward()
        self.optimizer.step()

    def forward(self, precision: str = "float32") -> None:
        """Segment the batch."""
        network = self.inference.eval()
        with torch.inference_mode(), self.autocast(precision):
            network(self.images)

    @cached_property
    def inference(self) -> nn.Module:
        """The network that predicts: the model, or its copy with factors multiplied."""
        return fuse_factors(self.model)

    def macs(self) -> int:
        """Return the multiply-accumulates of one image's forward pass."""
        return cost.count_macs(self.model, self.image)


def measure_in_alternation(loads: Mapping[str, Workload], repeats: int) -> dict[str, Row]:
    """Time passes and steps of workloads by turns, in float32, and measure their memory.

    Returns:
        For each workload, milliseconds (`forward_ms`, `step_ms`) and the memory that each holds at
        most (`forward_mib`, `step_mib`). If there are two, the first has its times and memory as
        multiples of the other's, too (`forward_ratio`, `forward_mib_ratio` and so on).
    """
    rows: dict[str, Row] = {name: {} for name in loads}
    for kind in ("forward", "step"):
        works = {name: getattr(load, kind) for name, load in loads.items()}
        samples = alternate(works, repeats)
        held = {
            name: cost.transient_memory(work, loads[name].device.type == "cuda")
            for name, work in works.items()
        }
        for name, row in rows.items():
            row[f"{kind}_ms"] = median_and_range(1e3 * s.seconds for s in samples[name])
            row[f"{kind}_mib"] = held[name] / 2**20
        if len(loads) == 2:
            first, second = loads
            pairs = zip(samples[first], samples[second], strict=True)
            rows[first][f"{kind}_ratio"] = median(a.seconds / b.seconds for a, b in pairs)
            rows[first][f"{kind}_mib_ratio"] = held[first] / held[second]
    return rows
