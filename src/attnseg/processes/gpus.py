"""Reserves GPUs by lock files, so that jobs that start at once do not share one by accident."""

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch

from attnseg.config.training import Config
from attnseg.processes.lock import Lock

PAUSE = 2.0  # Seconds between two attempts to find a free GPU.
VISIBLE = "CUDA_VISIBLE_DEVICES"
# One of these is set where a cluster or torchrun has assigned the GPUs of this process.
CHOSEN = ("SLURM_JOB_ID", "LOCAL_RANK")
log = logging.getLogger(__name__)


@contextmanager
def leased(config: Config) -> Iterator[None]:
    """Reserve GPUs for the block and hide all others from this process.

    Wait until `trainer.devices` GPUs are free; `trainer.jobs_per_gpu` runs may share one. Enter the
    block before anything is put on a GPU.
    """
    if config.trainer.accelerator != "gpu" or any(name in os.environ for name in CHOSEN):
        yield
        return
    before = os.environ.get(VISIBLE)
    names = before.split(",") if before else [str(n) for n in range(torch.cuda.device_count())]
    locks = _lease(names, config.trainer.devices, config.trainer.jobs_per_gpu)
    os.environ[VISIBLE] = ",".join(locks)
    try:
        yield
    finally:
        os.environ.pop(VISIBLE)
        if before is not None:
            os.environ[VISIBLE] = before
        for lock in locks.values():
            lock.release()


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
