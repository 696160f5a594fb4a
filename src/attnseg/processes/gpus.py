"""Reserves GPUs by lock files, so that jobs that start at once do not share one by accident.

A process that has opened a GPU by CUDA keeps it. So whatever asks for facts about GPUs before a
job has reserved its own must ask the driver's management library (see `nvml.py`).
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch

from attnseg.config.training import Config
from attnseg.energy import EnergyMeter
from attnseg.errors import ConfigError
from attnseg.nvml import Gpu, find_driver, find_gpu
from attnseg.processes.lock import Lock

PAUSE = 2.0  # Seconds between two attempts to find a free GPU.
VISIBLE = "CUDA_VISIBLE_DEVICES"
# One of these is set where a cluster or torchrun has assigned the GPUs of this process.
CHOSEN = ("SLURM_JOB_ID", "LOCAL_RANK")
OLDEST_DRIVERS: Mapping[int, int] = {12: 525, 13: 580}  # by CUDA's major version
log = logging.getLogger(__name__)


@contextmanager
def leased(config: Config) -> Iterator[Callable[[], None]]:
    """Yield a function that reserves GPUs until the block ends, and hides all others.

    It waits until `trainer.devices` GPUs are free; `trainer.jobs_per_gpu` runs may share one. Call
    it before anything touches CUDA; a second call does nothing.
    """
    before, locks = dict(os.environ), dict[str, Lock]()
    # Else PyTorch opens CUDA to learn whether there is a GPU.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

    def lease() -> None:
        if config.trainer.accelerator != "gpu":
            return
        # Deterministic products need it, and cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if locks or any(name in os.environ for name in CHOSEN):
            return
        names = visible_gpus()
        locks.update(_lease(names, config.trainer.devices, config.trainer.jobs_per_gpu))
        os.environ[VISIBLE] = ",".join(locks)
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # that of nvidia-smi and NVML

    try:
        yield lease
    finally:
        for name in (VISIBLE, "CUDA_DEVICE_ORDER", "PYTORCH_NVML_BASED_CUDA_CHECK"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        for lock in locks.values():
            lock.release()


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    names = os.environ.get(VISIBLE)
    return names.split(",") if names else [str(n) for n in range(torch.cuda.device_count())]


def find_visible_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use and NVML knows; none without a driver."""
    return [gpu for name in visible_gpus() if (gpu := find_gpu(name)) is not None]


def name_open_gpu() -> str:
    """Return the UUID of the GPU that this process computes on, as in CUDA_VISIBLE_DEVICES.

    Its number would not do: CUDA counts the fastest GPU first, NVML by the PCI bus. This opens the
    GPU.
    """
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def meter_of(config: Config) -> EnergyMeter:
    """Return the meter of the device that a run trains on, once its GPUs are reserved."""
    if config.trainer.accelerator == "cpu":
        return EnergyMeter()
    names, devices = visible_gpus(), config.trainer.devices
    unknown = None
    if config.trainer.jobs_per_gpu > 1:
        unknown = "trainer.jobs_per_gpu lets several runs share a GPU"
    elif len(names) < devices:
        unknown = "some of the GPUs are in other machines"
    return EnergyMeter(names[:devices], unknown)


def check_driver() -> None:
    """Refuse a driver or a GPU that is too old for this PyTorch, by a `ConfigError`."""
    driver, needed = find_driver(), torch.version.cuda
    if driver is None or needed is None:
        return
    major = int(needed.split(".")[0])
    if driver.cuda[0] < major:  # Within a major version, drivers run newer minor ones.
        least = OLDEST_DRIVERS.get(major)
        raise ConfigError(
            f"trainer.accelerator: the GPU's driver {driver.version} supports CUDA "
            f"{driver.cuda[0]}.{driver.cuda[1]}, and PyTorch {torch.__version__} needs {needed}; "
            f"install {f'driver {least} or newer' if least else 'a newer driver'}, or PyTorch for "
            f"CUDA {driver.cuda[0]}"
        )
    flags = torch._C._cuda_getArchFlags() or ""  # `get_arch_list` would open CUDA.
    kernels = [int(name[3:-1]) * 10 + int(name[-1]) for name in flags.split() if name[3:].isdigit()]
    for gpu in find_visible_gpus():
        if kernels and gpu.capability[0] * 10 + gpu.capability[1] < min(kernels):
            own, oldest = ".".join(map(str, gpu.capability)), f"{min(kernels) / 10:.1f}"
            raise ConfigError(
                f"trainer.accelerator: PyTorch {torch.__version__} has no kernels for {gpu.name} "
                f"(compute capability {own}, {oldest} at least); install an older PyTorch, hide it "
                f"by {VISIBLE}, or use trainer=cpu"
            )


def _lease(names: list[str], count: int, share: int) -> dict[str, Lock]:
    """Wait until `count` of the named GPUs are free, and return their locks by name."""
    folder = Path(tempfile.gettempdir(), f"attnseg-gpus-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    waits = False
    while True:
        locks = dict(islice(_free(folder, names, share), count))
        if len(locks) == count:
            return locks
        for lock in locks.values():  # Else two runs could wait for each other.
            lock.release()
        if not waits:
            log.info("Waiting for %d free of %d GPUs", count, len(names))
            waits = True
        time.sleep(PAUSE)


def _free(folder: Path, names: list[str], share: int) -> Iterator[tuple[str, Lock]]:
    """Take free places one by one, the first place of every GPU before the second of any."""
    taken = set()
    for place in range(share):
        for name in names:
            lock = Lock(folder / f"{name.replace('/', '_')}.{place}")
            if name not in taken and lock.take() is None:
                taken.add(name)
                yield name, lock
