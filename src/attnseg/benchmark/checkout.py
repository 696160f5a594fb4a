"""A model beside published code on this machine: arithmetic, time and memory, in alternation."""

import importlib
import sys
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

from attnseg.benchmark.options import Benchmark, Checkout
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import alternate, median_and_range
from attnseg.benchmark.workload import Workload
from attnseg.config import cost
from attnseg.errors import ConfigError
from attnseg.models.model import SegmentationModel

COLUMNS = {
    "label": "model",
    "network": "network",
    "parameters": "parameters",
    "macs": "MACs",
    "forward_ms": "forward, ms",
    "step_ms": "training step, ms",
    "forward_mib": "forward, MiB",
    "step_mib": "training step, MiB",
    "forward_ratio": "forward, ours / published",
    "step_ratio": "training step, ours / published",
}


class PublishedNetwork(SegmentationModel):
    """A network of others, whose first output are its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_outputs(self, image: Tensor) -> list[Tensor]:
        """Return all outputs that the network is trained on."""
        outputs = self.network(image)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[B, K, H, W]`."""
        return self.training_outputs(image)[0]


def measure_checkout(
    config: Benchmark, device: torch.device, precisions: Sequence[str]
) -> list[Row]:
    """Measure the configured model and the published network in float32.

    Raises:
        ConfigError: no published code is named, it cannot be imported, or its logits do not fit.
    """
    theirs = PublishedNetwork(load_network(config.checkout)).to(device)
    check_logits(theirs, config, device)
    loads = {"ours": Workload(config, device), "published": Workload(config, device, model=theirs)}
    samples = {
        kind: alternate({name: getattr(load, kind) for name, load in loads.items()}, config.repeats)
        for kind in ("forward", "step")
    }
    rows: list[Row] = []
    for name, load in loads.items():
        row: Row = {
            "network": config.checkout.network if name == "published" else name,
            "parameters": sum(parameter.numel() for parameter in load.model.parameters()),
            "macs": load.macs(),
        }
        for kind, timed in samples.items():
            row[f"{kind}_ms"] = median_and_range(1e3 * sample.seconds for sample in timed[name])
            held = cost.transient_memory(getattr(load, kind), device.type == "cuda")
            row[f"{kind}_mib"] = held / 2**20
        rows.append(row)
    for kind, timed in samples.items():
        pairs = zip(*timed.values(), strict=True)
        rows[0][f"{kind}_ratio"] = median(own.seconds / other.seconds for own, other in pairs)
    return rows


def load_network(checkout: Checkout) -> nn.Module:
    """Import the published code, which runs it, and return its network."""
    if checkout.folder is None or checkout.network is None:
        raise ConfigError(
            "checkout: names no published code; use checkout.folder=DIR "
            "checkout.network=MODULE:CALLABLE"
        )
    module, _, path = checkout.network.partition(":")
    sys.path.insert(0, str(checkout.folder))
    try:
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        network = found(**(checkout.options or {}))  # type: ignore[operator]
    except Exception as error:  # whatever the code of others raises
        raise ConfigError(
            f"checkout: {checkout.network} of {checkout.folder} fails with "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(checkout.folder))
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"checkout.network: {checkout.network} makes a {type(network).__name__}, no network"
        )
    return network


def check_logits(network: nn.Module, config: Benchmark, device: torch.device) -> None:
    """Refuse a network whose logits the loss cannot compare with masks."""
    images = torch.randn(1, config.in_channels, *config.image_size, device=device)
    with torch.inference_mode():
        shape = tuple(network.eval()(images).shape)
    expected = (1, config.num_classes, *config.image_size)
    if shape != expected:
        raise ConfigError(
            f"checkout.network: the logits of an image have shape {shape} in place of {expected}"
        )
