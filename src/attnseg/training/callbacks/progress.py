"""Terminal output of training: a progress bar during an epoch and one line after it."""

import logging
import math
import time
from typing import Any

import pytorch_lightning as pl

from attnseg.data.slices import Sample
from attnseg.progress import Bar, format_seconds

log = logging.getLogger(__name__)


class EpochProgress(pl.Callback):
    """Shows a bar with the loss while an epoch trains, and prints a line when it is done.

    The line names the foreground classes and the split that is scored after every epoch.
    """

    def __init__(self, classes: tuple[str, ...], split: str = "val") -> None:
        self.classes, self.split = classes, split
        self.bar: Bar | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time and the number of epochs done by earlier processes."""
        self.fit_started, self.first_epoch = time.monotonic(), trainer.current_epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show a bar if training resumes within an epoch."""
        if resumed_batches(trainer):
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show a bar."""
        self.epoch_started = time.monotonic()
        if trainer.is_global_zero:
            label = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            batches = int(trainer.num_training_batches)
            self.bar = Bar(label, batches, "batches", resumed_batches(trainer))
            self.bar.__enter__()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Sample,
        batch_idx: int,
    ) -> None:
        """Advance the bar."""
        if self.bar:
            # That of the last batch whose loss is known; `outputs` would be waited for.
            loss = getattr(pl_module, "last_loss", math.nan)
            self.bar.advance(f"loss {loss:.3f}" if math.isfinite(loss) else "")

    def on_validation_start(self, *args: object, **kwargs: object) -> None:
        """Remove the bar."""
        self._close_bar()

    def on_exception(self, *args: object, **kwargs: object) -> None:
        """Remove the bar so that it does not obscure the error message."""
        self._close_bar()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's losses, Dice and time."""
        self._close_bar()
        now, done = time.monotonic(), trainer.current_epoch + 1
        seconds_per_epoch = (now - self.fit_started) / (done - self.first_epoch)
        left = seconds_per_epoch * (int(trainer.max_epochs or 0) - done)
        values = trainer.callback_metrics
        classes = ", ".join(f"{n} {float(values[f'val/dice/{n}']):.3f}" for n in self.classes)
        log.info(
            "Epoch %d/%d: train loss %.4f, %s loss %.4f, %s Dice %.4f (%s), %.1f s, %s left",
            done,
            trainer.max_epochs,
            values["train/loss"],
            self.split,
            values["val/loss"],
            self.split,
            values["val/dice"],
            classes,
            now - self.epoch_started,
            format_seconds(left),
        )

    def _close_bar(self) -> None:
        if self.bar:
            self.bar.__exit__(None, None, None)
            self.bar = None


def resumed_batches(trainer: pl.Trainer) -> int:
    """Return how many batches of the current epoch an earlier process has already done."""
    done: int = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return done if trainer.fit_loop.restarted_mid_epoch else 0
