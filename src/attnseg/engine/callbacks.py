"""What happens around training: progress, one line per epoch, the history."""

import logging
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl

from attnseg.data.slices import Sample
from attnseg.engine.files import write_text
from attnseg.progress import Bar

log = logging.getLogger(__name__)


class Progress(pl.Callback):
    """A bar with the loss while an epoch trains, and one line when it is done."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.bar: Bar | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time."""
        self.fit_started = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a bar."""
        self.epoch_started = time.monotonic()
        if trainer.is_global_zero:
            label = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar = Bar(label, int(trainer.num_training_batches), "batches")
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
            self.bar.advance(f"loss {float(outputs['loss']) * trainer.accumulate_grad_batches:.3f}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away, so that the message stands alone."""
        self._close()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's line."""
        self._close()
        now, done = time.monotonic(), trainer.current_epoch + 1
        left = (now - self.fit_started) / done * (int(trainer.max_epochs or 0) - done)
        values = trainer.callback_metrics
        classes = ", ".join(f"{n} {float(values[f'val/dice/{n}']):.3f}" for n in self.classes)
        log.info(
            "Epoch %d/%d: train loss %.4f, val loss %.4f, val Dice %.4f (%s), %.1f s, %s left",
            done,
            trainer.max_epochs,
            values["train/loss"],
            values["val/loss"],
            values["val/dice"],
            classes,
            now - self.epoch_started,
            f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s",
        )

    def _close(self) -> None:
        if self.bar:
            self.bar.__exit__(None, None, None)
            self.bar = None


class History(pl.Callback):
    """Writes `history.csv`: one row per epoch with every logged value.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time and the learning rate."""
        self.started = time.monotonic()
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's row."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": self.lr}
        seconds = round(time.monotonic() - self.started, 2)
        self.rows.append({**row, **dict(sorted(values.items())), "seconds": seconds})
        if trainer.is_global_zero:
            write_text(self.path, pd.DataFrame(self.rows).to_csv(index=False, lineterminator="\n"))
