"""Finds the largest batch size that fits into memory, for `trainer.auto_batch`.

A training step's memory grows linearly with the batch, once the activations need more than the
optimizer does. Larger and larger batches are tried until the peak has doubled, and the line through
the last two peaks is extended to a share of the free memory. On a GPU, PyTorch reports the peaks,
and the batch that was found is tried, too. On a CPU, each batch is tried in a forked process, which
may run out of memory.

The model is prepared as for training: with gradient checkpointing, averaged weights and
deterministic algorithms where they are asked for.
"""

import copy
import logging
import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import torch

from attnseg.config.components import Components
from attnseg.config.cost import transient_memory
from attnseg.config.training import Config, Trainer
from attnseg.data.labels import Labels
from attnseg.errors import ResourceError
from attnseg.memory import free_memory
from attnseg.training.lightning_trainer import deterministic_algorithms
from attnseg.training.module import parameter_groups
from attnseg.training.precision import autocast
from attnseg.training.recompute import recompute_blocks

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.8  # The rest is for data, validation and other processes.
SMALL, GROWTH = 1, 3  # The first batch size that is tried, and the ratio of the others.
Step = Callable[[int], object]  # Trains on a batch of that many slices.


def find_largest_batch(
    config: Config, components: Components, image: tuple[int, int, int], labels: Labels
) -> int:
    """Return how many slices `[C, H, W]` a training step can take; leave the model unchanged."""
    gpu = config.trainer.accelerator == "gpu"
    step = partial(_train_on_zeros, components, config.trainer, image, labels)
    free = torch.cuda.mem_get_info()[0] if gpu else free_memory()
    if free is None:
        raise ResourceError(
            "trainer.auto_batch: this system does not tell how much memory is free; set "
            "dataset.batch_size"
        )
    measure_peak = _gpu_peak if gpu else _cpu_peak
    available = round(MEMORY_SHARE * free)
    first = measure_peak(step, SMALL)
    if first > available:
        raise ResourceError(
            f"trainer.auto_batch: one slice needs {first / 1e9:.2g} GB and {free / 1e9:.2g} GB are "
            "free; lower dataset.image_size or use trainer.gradient_checkpointing=true"
        )
    batch, small, larger = SMALL, first, _peak_if_it_fits(measure_peak, step, GROWTH * SMALL)
    if larger is None:
        second = _peak_if_it_fits(measure_peak, step, SMALL + 1)
        largest = SMALL if second is None or second > available else SMALL + 1
        log.info("trainer.auto_batch: %d at once, %d slices do not fit", largest, GROWTH * SMALL)
        return largest
    # Until then, the gradients and the optimizer's state may hide the activations.
    while larger < 2 * first and GROWTH * larger < available:
        batch *= GROWTH
        small, larger = larger, measure_peak(step, GROWTH * batch)
    per_slice = max((larger - small) / (GROWTH * batch - batch), 1.0)
    largest = batch_that_fits(batch, small, per_slice, available)
    while gpu and largest > 1 and not _fits_on_gpu(step, largest):
        largest = 9 * largest // 10
    log.info(
        "trainer.auto_batch: %d slices at once, %.2f GB each, in %.0f %% of %.1f GB free memory",
        largest, per_slice / 1e9, 100 * MEMORY_SHARE, free / 1e9,
    )  # fmt: skip
    return largest


def batch_that_fits(batch: int, peak: float, per_slice: float, available: float) -> int:
    """Return the largest batch size that fits into `available` bytes; at least 1.

    A batch of `batch` slices has a `peak`, and each further one adds `per_slice` bytes.
    """
    return max(1, batch + int((available - peak) // per_slice))


def _train_on_zeros(
    components: Components,
    options: Trainer,
    image: tuple[int, int, int],
    labels: Labels,
    batch: int,
) -> None:
    """Run one optimizer step on a batch of empty slices.

    On a GPU, a copy of the model takes it. On a CPU, this process is a fork and ends with the step.
    """
    device, model = options.device_type, components.model
    if device == "cuda":
        model = copy.deepcopy(model).to(device)
    model.train()
    average = copy.deepcopy(model) if options.ema_decay else None
    if options.gradient_checkpointing:
        recompute_blocks(model)
    loss_function = copy.deepcopy(components.loss).to(device)
    optimizer = components.optimizer(params=parameter_groups(model))
    pixels = torch.zeros(batch, *image, device=device)
    mask = torch.zeros(batch, *image[1:], dtype=torch.uint8, device=device)
    with deterministic_algorithms(options):
        with autocast(options):
            outputs = model.training_outputs(pixels)
            target = labels.target(mask)
            loss = torch.stack([loss_function(output, target) for output in outputs]).sum()
        loss.backward()
        optimizer.step()
    del average  # Its memory counts until here.


def _peak_if_it_fits(
    measure_peak: Callable[[Step, int], int], step: Step, batch: int
) -> int | None:
    """Return the peak of a step; `None` if it runs out of memory."""
    try:
        return measure_peak(step, batch)
    except ResourceError:
        return None


def _gpu_peak(step: Step, batch: int) -> int:
    """Return the peak of the bytes that a step allocates on the GPU."""
    try:
        return transient_memory(partial(step, batch), on_gpu=True)
    except torch.OutOfMemoryError:
        raise ResourceError(
            f"trainer.auto_batch: {batch} slices do not fit on the GPU; lower dataset.image_size, "
            "use trainer.gradient_checkpointing=true, or set dataset.batch_size"
        ) from None
    finally:
        torch.cuda.empty_cache()


def _fits_on_gpu(step: Step, batch: int) -> bool:
    try:
        step(batch)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _cpu_peak(step: Step, batch: int) -> int:
    """Return the peak of the bytes that a step allocates in a fork of this process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_peak, args=(step, batch, sender))
    child.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError:
        raise ResourceError(
            "trainer.auto_batch: the process that tried a batch has died, probably for want of "
            "memory; lower dataset.image_size"
        ) from None
    finally:
        child.join()


def _send_peak(step: Step, batch: int, sender: Connection) -> None:
    torch.set_num_threads(1)  # A fork does not have its parent's other threads.
    sender.send(transient_memory(partial(step, batch), on_gpu=False))
