"""The largest batch that a machine's memory holds: `trainer.auto_batch`."""

import logging
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from attnseg.config.components import Parts
from attnseg.config.schema import Config
from attnseg.data.labels import Labels
from attnseg.errors import ResourceError
from attnseg.training.module import parameter_groups

log = logging.getLogger(__name__)

SHARE = 0.8  # of the memory that is free; the rest is for data, validation and other processes
SMALL, LARGER = 1, 3  # batches that are tried, to learn what a slice takes
Step = Callable[[int], object]  # trains on a batch of that many slices


def largest_batch(config: Config, parts: Parts, image: tuple[int, int, int], labels: Labels) -> int:
    """Return how many slices a training step can take at once.

    Memory is linear in the batch: two small batches are tried. The model is left as it was.

    Args:
        config: of the run.
        parts: built from it.
        image: C, H, W of the network's input.
        labels: foreground classes.

    Raises:
        ResourceError: not even one slice fits.
    """
    device = torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    low_precision = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    dtype = low_precision.get(str(config.trainer.precision))

    def step(batch: int) -> None:
        model = parts.model.to(device).train()
        optimizer = parts.optimizer(params=parameter_groups(model))
        pixels = torch.zeros(batch, *image, device=device)
        mask = torch.zeros(batch, *image[1:], dtype=torch.uint8, device=device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            outputs = model.training_outputs(pixels)
            target = labels.target(mask)
            loss = torch.stack([parts.loss(output, target) for output in outputs]).sum()
        loss.backward()
        optimizer.step()

    if device.type == "cuda":
        before = {name: value.cpu().clone() for name, value in parts.model.state_dict().items()}
        peak, room = _gpu_peak, torch.cuda.mem_get_info()[0]
    else:
        peak, room = _cpu_peak, free_memory()
    small, larger = (peak(step, batch) for batch in (SMALL, LARGER))
    found = batch_that_fits(small, larger, round(SHARE * room))
    if device.type == "cuda":
        parts.model.load_state_dict(before)
        parts.model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    if found < 1:
        raise ResourceError(
            f"trainer.auto_batch: one slice needs {small / 1e9:.2g} GB and {room / 1e9:.2g} GB are "
            "free; lower dataset.image_size or use trainer.gradient_checkpointing=true"
        )
    per_slice = (larger - small) / (LARGER - SMALL)
    log.info(
        "trainer.auto_batch: %d slices at once, %.2f GB each, in %.0f %% of %.1f GB free memory",
        found, per_slice / 1e9, 100 * SHARE, room / 1e9,
    )  # fmt: skip
    return found


def batch_that_fits(small: int, larger: int, room: int) -> int:
    """Return the largest batch within some memory; 0 if none is.

    Args:
        small: bytes that a batch of `SMALL` takes.
        larger: bytes that one of `LARGER` takes.
        room: bytes there are.
    """
    if small > room:
        return 0
    per_slice = max((larger - small) / (LARGER - SMALL), 1.0)
    return SMALL + int((room - small) / per_slice)


def free_memory() -> int:
    """Return the bytes that can still be taken, of the machine and of the control group."""
    with open("/proc/meminfo") as lines:
        facts = dict(line.split(":") for line in lines)
    free = 1024 * int(facts["MemAvailable"].split()[0])
    limit, used = (Path("/sys/fs/cgroup", f"memory.{name}") for name in ("max", "current"))
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def _gpu_peak(step: Step, batch: int) -> int:
    torch.cuda.reset_peak_memory_stats()
    step(batch)
    return torch.cuda.max_memory_allocated()


def _cpu_peak(step: Step, batch: int) -> int:
    """Return the bytes that a step adds to a process, measured in a fork of this one."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_measured, args=(step, batch, theirs))
    child.start()
    theirs.close()
    try:
        return int(ours.recv())
    except EOFError:
        raise ResourceError(
            "trainer.auto_batch: the process that tried a batch has died, probably for want of "
            "memory; lower dataset.image_size"
        ) from None
    finally:
        child.join()


def _measured(step: Step, batch: int, answer: Connection) -> None:
    torch.set_num_threads(1)  # the threads of the process that was forked are not here
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(batch)
    answer.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
