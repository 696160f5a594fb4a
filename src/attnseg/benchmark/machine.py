"""The measured machine: its device, and its rates of matrix products and copies."""

import logging
import platform
from collections.abc import Sequence

import torch

from attnseg.benchmark.timing import Spread, median_and_range, seconds
from attnseg.errors import ConfigError

log = logging.getLogger(__name__)

Rates = dict[str, float]  # GFLOP/s of a matrix product, by precision
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}
SIZES = {"cpu": 2048, "cuda": 8192}  # rows of the matrices; a GPU needs larger ones to be busy
PRODUCTS = 5  # per reading
PROBE = 256  # rows of the matrices that show whether a precision is faster than emulated
COPIED = 1 << 28  # bytes


class Gemm:
    """A gauge of the machine's speed at any moment: the rate of a product of two square matrices.

    Args:
        device: CPU or GPU.
        names: precisions beside float32.
        size: rows of the matrices; `None` is the device's.
    """

    def __init__(
        self, device: torch.device, names: Sequence[str] = (), size: int | None = None
    ) -> None:
        self.size = size or SIZES[device.type]
        pair = torch.randn(2, self.size, self.size, device=device)
        self.matrices = {name: pair.to(TYPES[name]) for name in dict.fromkeys(["float32", *names])}

    def rate(self, name: str) -> float:
        """Return the median rate of a few products, GFLOP/s."""
        a, b = self.matrices[name]
        taken = median_and_range(seconds(lambda: a @ b) for _ in range(PRODUCTS))
        return 2e-9 * self.size**3 / taken["median"]

    def rates(self) -> Rates:
        """Return the rates in all precisions."""
        return {name: self.rate(name) for name in self.matrices}


def choose_device(device: str, threads: int | None) -> torch.device:
    """Return the device to measure on, and set PyTorch's threads.

    Raises:
        ConfigError: there is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: no GPU found on this machine; use device=cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device(device)


def computed_precisions(names: Sequence[str], device: torch.device) -> list[str]:
    """Return the precisions that this machine does not merely emulate, as many CPUs do bf16."""
    probe = Gemm(device, names, PROBE)
    probe.rates()  # the first products warm up
    rates = probe.rates()
    kept = [name for name in names if rates[name] > rates["float32"] / 2]
    for name in names:
        if name not in kept:
            log.warning(
                "precisions: %s is not measured, its matrix product runs at %.3g of float32's rate "
                "on this machine",
                name,
                rates[name] / rates["float32"],
            )
    return kept


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return the device and versions that measurements depend on."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure_limits(device: torch.device, repeats: int, names: Sequence[str]) -> dict[str, Spread]:
    """Return the machine's limits: matrix products, GFLOP/s, and copies of memory, GB/s."""
    gemm = Gemm(device, names)
    readings = [gemm.rates() for _ in range(repeats)]
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copies = [COPIED / 1e9 / seconds(lambda: target.copy_(source)) for _ in range(repeats)]
    limits = {name: median_and_range(rates[name] for rates in readings) for name in gemm.matrices}
    return {**limits, "copy": median_and_range(copies)}
