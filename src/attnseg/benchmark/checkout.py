"""A model beside published code on this machine: arithmetic, time and memory, in alternation."""

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from attnseg.benchmark.options import Benchmark, Checkout
from attnseg.benchmark.report import Row
from attnseg.benchmark.workload import Workload, measure_in_alternation
from attnseg.config import cost
from attnseg.errors import AttnsegError, ConfigError, first_line
from attnseg.models.model import SegmentationModel
from attnseg.runs.active_run import read_git_state

log = logging.getLogger(__name__)

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


class PublishedWorkload(Workload):
    """The published network with a batch of noise; a failure of it is the published code's.

    Raises:
        ConfigError: no published code is named, it fails, or its outputs do not fit.
    """

    def __init__(self, config: Benchmark, device: torch.device) -> None:
        self.checkout = config.checkout
        with running_published(self.checkout):
            network = PublishedNetwork(import_network(self.checkout))
            super().__init__(config, device, model=network)
            expected = (config.batch_size, config.num_classes, *config.image_size)
            check_outputs(network, self.images, expected)

    def step(self, precision: str = "float32") -> None:
        """Train on the batch, as `Workload` does."""
        with running_published(self.checkout):
            super().step(precision)

    def forward(self, precision: str = "float32") -> None:
        """Segment the batch, as `Workload` does."""
        with running_published(self.checkout):
            super().forward(precision)


def measure_checkout(
    config: Benchmark, device: torch.device, precisions: Sequence[str]
) -> list[Row]:
    """Measure the configured model and the published network in float32.

    Raises:
        ConfigError: no published code is named, it fails, or its outputs do not fit.
    """
    checkout = config.checkout
    loads = {"ours": Workload(config, device)}
    loads[str(checkout.network)] = PublishedWorkload(config, device)
    rows = measure_in_alternation(loads, config.repeats)
    git = read_git_state(Path(str(checkout.folder)))
    commit = git and git["commit"] + ", modified" * git["modified"]
    for name, load in loads.items():
        rows[name] |= {
            "network": name,
            "parameters": cost.count_parameters(load.model)["total"],
            "macs": try_to_count_macs(load),
            "code": f"{checkout.folder}, {checkout.options or 'no options'}",
            "checkout_commit": commit,
            "images": f"{load.batch_size} of {'x'.join(map(str, load.image))}",
        }
    return list(rows.values())


@contextmanager
def running_published(checkout: Checkout) -> Iterator[None]:
    """Import from the published code's folder, and report whatever the code raises as its error."""
    path, arguments = list(sys.path), sys.argv
    writes_bytecode = sys.dont_write_bytecode
    sys.path.insert(0, str(checkout.folder))
    # Some code reads its options on import; none of ours are for it.
    sys.argv, sys.dont_write_bytecode = [str(checkout.network)], True
    try:
        yield
    except AttnsegError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"checkout: {checkout.network} of {checkout.folder} fails with "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        sys.path[:] = path
        sys.argv, sys.dont_write_bytecode = arguments, writes_bytecode


def import_network(checkout: Checkout) -> nn.Module:
    """Import the published code, which runs it, and return its network."""
    if checkout.folder is None or checkout.network is None:
        raise ConfigError(
            "checkout: names no published code; use checkout.folder=DIR "
            "checkout.network=MODULE:CALLABLE"
        )
    name, _, path = checkout.network.partition(":")
    module = importlib.import_module(name)
    folder = Path(checkout.folder).resolve()
    if not Path(module.__file__ or "/").resolve().is_relative_to(folder):
        raise ConfigError(
            f"checkout.network: {name} is a module of {module.__file__}, not of {folder}"
        )
    found = module
    for part in path.split("."):
        found = getattr(found, part)
    network: object = found(**(checkout.options or {}))  # type: ignore[operator]
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"checkout.network: {checkout.network} makes a {type(network).__name__}, no network"
        )
    return network


def check_outputs(network: PublishedNetwork, images: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a network with an output that the loss cannot compare with masks."""
    with torch.inference_mode():
        outputs = network.train().training_outputs(images)
    found: list[object] = [*outputs] or ["nothing"]
    for output in found:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if shape != expected:
            raise ConfigError(
                f"checkout.network: an output of {len(images)} images is {shape} in place of "
                f"{expected}"
            )


def try_to_count_macs(load: Workload) -> int | None:
    """Return the multiply-accumulates of a forward pass; `None` if the code cannot be counted."""
    try:
        return load.macs()
    except Exception as error:  # such as code that moves its input to a device of its own
        log.warning("Multiply-accumulates are not counted: %s", first_line(error))
        return None
