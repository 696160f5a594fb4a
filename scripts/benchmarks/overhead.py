"""Cost of the training loop, and of plain Lightning, beyond a bare PyTorch loop.

One process trains the same model on the same data three times, epoch by epoch in turn: attnseg's
training loop with its default callbacks trains an epoch, then the bare loop, then a `Trainer` with
a module that has no more than the training step. All are timed by the same clock, from the end of
one optimizer step to the end of the next, loading included. The first step of an epoch, which
follows validation and checkpoints, is left out, and so is the first epoch of each.
"""

import contextlib
import dataclasses
import itertools
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import pytorch_lightning as pl
import torch
from torch import nn

from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import median_and_range, wait
from attnseg.config.components import Components, build_components
from attnseg.config.training import Trainer
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.labels import Labels
from attnseg.data.reader import Reader
from attnseg.models.model import SegmentationModel
from attnseg.preparation.datasets import PreparedData, load_dataset, open_reader
from attnseg.processes.launch import ProcessGroup
from attnseg.processes.signals import Stopping
from attnseg.runs.run_folder import RunFolder
from attnseg.training.callbacks.history import HistoryRow
from attnseg.training.fit import fit
from attnseg.training.module import parameter_groups
from attnseg.training.setup import TrainingSetup, make_loaders

log = logging.getLogger("attnseg.benchmark")  # the one whose messages are printed

OURS, BARE, LIGHTNING = "training loop", "bare", "plain Lightning"
BATCHES = 10  # per epoch, if the data has as many
COLUMNS = {
    "label": "model and data",
    "loop": "loop",
    "steps": "steps",
    "ms": "step, ms",
    "waiting": "waiting for data, ms per step",
    "overhead": "beyond the bare loop, %",
}


class Clock:
    """Notes the end of every optimizer step, of one loop or the other."""

    def __init__(self) -> None:
        self.steps: list[float] = []  # of the epoch so far
        self.epochs: list[list[float]] = []  # seconds of each step but an epoch's first
        self.waits: list[float] = []  # for the next batch, seconds per step, of each epoch

    def tick(self, *ignored: object) -> None:
        """Note the time."""
        wait()
        self.steps.append(time.perf_counter())

    def end_epoch(self, waited: float | None = None) -> None:
        """Keep the times between the epoch's steps, and the seconds that it waited for batches."""
        if waited is not None:
            self.waits.append(waited / len(self.steps))
        pairs = zip(self.steps, self.steps[1:], strict=False)
        self.epochs.append([after - before for before, after in pairs])
        self.steps = []


def measure_overhead(
    config: Benchmark, device: torch.device, precisions: Sequence[str]
) -> list[Row]:
    """Train with the training loop, the bare loop and plain Lightning, an epoch each in turn."""
    clocks = time_loops(config, device, with_lightning=True)
    rows: dict[str, Row] = {
        name: {
            "label": f"{config.choices['model']}, {config.dataset_name}",
            "loop": name,
            "steps": sum(map(len, clock.epochs[1:])),
            "ms": median_and_range(1e3 * taken for epoch in clock.epochs[1:] for taken in epoch),
        }
        for name, clock in clocks.items()
    }
    for name in (OURS, BARE):
        rows[name]["waiting"] = median_and_range(1e3 * wait for wait in clocks[name].waits[1:])
    for name in (OURS, LIGHTNING):
        rows[name]["overhead"] = median_and_range(beyond(clocks[name], clocks[BARE]))
    return list(rows.values())


def time_loops(config: Benchmark, device: torch.device, with_lightning: bool) -> dict[str, Clock]:
    """Train the same model with each loop, an epoch each in turn; return their clocks by name."""
    config = shorten(config, device)
    reader = open_reader(config)
    data = load_dataset(config, reader)
    clocks = {name: Clock() for name in (OURS, BARE, *([LIGHTNING] if with_lightning else []))}
    setups = {
        name: set_up_with_clock(config, reader, data, clock) for name, clock in clocks.items()
    }
    loops = {BARE: BareLoop, LIGHTNING: PlainLightning}
    others: dict[str, BareLoop | PlainLightning] = {
        name: loop(config, setups[name].components, setups[name].loaders, reader.labels, device)
        for name, loop in loops.items()
        if name in setups
    }

    def end_epoch(rows: Sequence[HistoryRow]) -> None:
        clocks[OURS].end_epoch(float(rows[-1]["waiting"]))
        with nondeterministic_algorithms():
            for name, loop in others.items():
                clocks[name].end_epoch(loop.epoch(len(rows) - 1))

    with tempfile.TemporaryDirectory() as folder:
        fit(setups[OURS], RunFolder(folder), ProcessGroup(1), Stopping(), on_epoch=end_epoch)
    return clocks


def beyond(loop: Clock, bare: Clock) -> list[float]:
    """Return how much longer a loop's median step is than the bare loop's, % by epoch."""
    return [
        100 * (median(ours) / median(theirs) - 1)
        for ours, theirs in zip(loop.epochs[1:], bare.epochs[1:], strict=True)
    ]


def shorten(config: Benchmark, device: torch.device, **options: object) -> Benchmark:
    """Return a configuration that trains a few short epochs on a device."""
    few = {
        "max_epochs": config.repeats + 1,
        "limit_batches": config.trainer.limit_batches or BATCHES,
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
    }
    trainer = config.trainer.model_copy(update=few | options)
    return config.model_copy(update={"trainer": trainer})


def set_up_with_clock(
    config: Benchmark, reader: Reader, data: PreparedData, clock: Clock
) -> TrainingSetup:
    """Set up a training, always alike, with an optimizer whose steps a clock notes."""
    torch.manual_seed(config.seed)
    parts = build_components(config, reader)
    build = parts.optimizer

    def timed(*args: object, **options: object) -> torch.optim.Optimizer:
        optimizer = build(*args, **options)
        optimizer.register_step_post_hook(clock.tick)
        return optimizer

    parts = dataclasses.replace(parts, optimizer=timed)
    return TrainingSetup(config, data, parts, make_loaders(config, data, parts))


def add_losses(
    model: SegmentationModel,
    loss: nn.Module,
    image: torch.Tensor,
    target: torch.Tensor,
    options: Trainer,
) -> torch.Tensor:
    """Return the loss of the logits, and of auxiliary ones by their weight."""
    main, *auxiliary = model.training_outputs(image)
    total: torch.Tensor = loss(main, target)
    for output in auxiliary:
        total = total + options.auxiliary_weight * loss(output, target)
    return total


class BareLoop:
    """The same training as plain PyTorch: no callbacks, no checks, no files.

    Args:
        config: of the training.
        parts: its model, loss and optimizer.
        datamodule: its data.
        labels: foreground classes.
        device: where.
    """

    def __init__(
        self,
        config: Benchmark,
        parts: Components,
        datamodule: SliceDataModule,
        labels: Labels,
        device: torch.device,
    ) -> None:
        self.options, self.device = config.trainer, device
        self.model = parts.model.to(device)
        self.loss: nn.Module = parts.loss.to(device)
        self.optimizer = parts.optimizer(parameter_groups(self.model))
        self.loader = datamodule.train_dataloader()
        self.labels = labels

    def epoch(self, number: int) -> float:
        """Train as many batches as the training loop; return the seconds of waiting for them."""
        assert self.options.limit_batches is not None
        self.model.train()
        self.loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        waited, idle_since = 0.0, time.perf_counter()
        for batch in itertools.islice(self.loader, self.options.limit_batches):
            waited += time.perf_counter() - idle_since
            image, mask = (
                batch[key].to(self.device, non_blocking=True) for key in ("image", "mask")
            )
            target = self.labels.target(mask)
            with self.autocast():
                loss = add_losses(self.model, self.loss, image, target, self.options)
            self.optimizer.zero_grad()
            loss.backward()
            if self.options.gradient_clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.options.gradient_clip)
            self.optimizer.step()
            idle_since = time.perf_counter()
        return waited

    def autocast(self) -> torch.autocast:
        """Return the context of the configured precision."""
        mixed = self.options.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)


class PlainLightning(pl.LightningModule):
    """The same training as a plain module in a `Trainer` without callbacks, loggers or checkpoints.

    The arguments are those of `BareLoop`.
    """

    def __init__(
        self,
        config: Benchmark,
        parts: Components,
        datamodule: SliceDataModule,
        labels: Labels,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.options, self.labels, self.accelerator = config.trainer, labels, device.type
        self.model, self.loss, self.make_optimizer = parts.model, parts.loss, parts.optimizer
        self.loader = datamodule.train_dataloader()
        self.kept: torch.optim.Optimizer | None = None  # the optimizer, with its state

    def epoch(self, number: int) -> None:
        """Train as many batches as the other loops do."""
        self.loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        pl.Trainer(
            max_epochs=1,
            limit_train_batches=self.options.limit_batches,
            accelerator=self.accelerator,
            devices=1,
            precision="bf16-mixed" if self.options.precision == "bf16-mixed" else "32-true",
            gradient_clip_val=self.options.gradient_clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        ).fit(self, self.loader)

    def training_step(self, batch: Mapping[str, torch.Tensor], index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        target = self.labels.target(batch["mask"])
        return add_losses(self.model, self.loss, batch["image"], target, self.options)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of the first epoch again, with its state."""
        if self.kept is None:
            # With 16-bit precision, Lightning refuses to clip gradients of a fused optimizer.
            self.kept = self.make_optimizer(parameter_groups(self.model), fused=None)
        return self.kept


@contextlib.contextmanager
def nondeterministic_algorithms() -> Iterator[None]:
    """Leave deterministic algorithms, which training turns on, while the block runs."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
