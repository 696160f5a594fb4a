"""What happens around training: progress, one line per epoch, the history."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor

from attnseg.data.slices import Sample
from attnseg.errors import ConfigError
from attnseg.files import write_text
from attnseg.processes.signals import Stopped, Stopping
from attnseg.progress import Bar
from attnseg.training.loggers import Loggers, Row

log = logging.getLogger(__name__)
Watch = Callable[[Sequence[Row]], None]  # is told the history, the latest epoch last


class EndedEarly(Exception):
    """Whoever watches a run has seen enough of it."""


class Progress(pl.Callback):
    """A bar with the loss while an epoch trains, and one line when it is done.

    Args:
        classes: foreground classes.
        watched: what is scored after every epoch.
    """

    def __init__(self, classes: tuple[str, ...], watched: str = "val") -> None:
        self.classes = classes
        self.watched = watched
        self.bar: Bar | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time and the epochs that an earlier process has done."""
        self.fit_started, self.first = time.monotonic(), trainer.current_epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a bar in the middle of an epoch, if training goes on there."""
        if batches_done(trainer):
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a bar."""
        self.epoch_started = time.monotonic()
        if trainer.is_global_zero:
            label = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar = Bar(
                label, int(trainer.num_training_batches), "batches", batches_done(trainer)
            )
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
            # Lightning divides the loss by the batches of a step, our module multiplies it.
            scale = trainer.accumulate_grad_batches / trainer.world_size
            self.bar.advance(f"loss {float(outputs['loss']) * scale:.3f}")

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
        left = (
            (now - self.fit_started) / (done - self.first) * (int(trainer.max_epochs or 0) - done)
        )
        values = trainer.callback_metrics
        classes = ", ".join(f"{n} {float(values[f'val/dice/{n}']):.3f}" for n in self.classes)
        log.info(
            "Epoch %d/%d: train loss %.4f, %s loss %.4f, %s Dice %.4f (%s), %.1f s, %s left",
            done,
            trainer.max_epochs,
            values["train/loss"],
            self.watched,
            values["val/loss"],
            self.watched,
            values["val/dice"],
            classes,
            now - self.epoch_started,
            f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s",
        )

    def _close(self) -> None:
        if self.bar:
            self.bar.__exit__(None, None, None)
            self.bar = None


class ProfileScores(pl.Callback):
    """Scores whole validation cases under the metric profile every few epochs, for the history.

    Args:
        every: epochs from one scoring to the next.
        score: returns the mean of each metric.
    """

    def __init__(self, every: int, score: Callable[[], dict[str, float]]) -> None:
        self.every, self.score = every, score

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score, if it is time."""
        if trainer.is_global_zero and (trainer.current_epoch + 1) % self.every == 0:
            for metric, value in self.score().items():
                pl_module.log(f"val/{metric}", value, rank_zero_only=True)


def batches_done(trainer: pl.Trainer) -> int:
    """Return the batches of the epoch that an earlier process has done, when training begins."""
    done: int = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return done if trainer.fit_loop.restarted_mid_epoch else 0


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, and knows it again in a folder that has moved.

    Args:
        folder: where it is.
        monitor: value that decides.
        mode: `max` or `min`.
    """

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        super().__init__(
            folder, filename="best", monitor=monitor, mode=mode, enable_version_counter=False
        )

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Return whether a value is the best so far; one that is no number never is."""
        if current is None or not math.isfinite(float(current)):
            return False
        return super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where an earlier process stopped."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        state = {**state_dict, "dirpath": self.dirpath}
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = here(state[name])
        kept = state["best_k_models"].items()
        super().load_state_dict({**state, "best_k_models": {here(p): v for p, v in kept}})


class LastCheckpoint(pl.callbacks.Checkpoint):
    """Keeps `last.ckpt`, from which the same command goes on to the same end, to the bit.

    It is of a moment between two optimizer steps: of the end of an epoch, of every few minutes, or
    of when a signal asked to stop. What Lightning has written in the checkpoint about where its
    loops are is put so that they go on there; the loader begins with the next batch
    (`SliceDataModule.first_batch`).

    Args:
        path: of the file.
        minutes: from one checkpoint to the next; `None` for one per epoch. Longer where keeping one
            takes long, so that it never takes more than `share` of the time.
        stopping: says when to stop.
    """

    share = 0.05

    def __init__(self, path: Path, minutes: float | None, stopping: Stopping) -> None:
        self.path, self.minutes, self.stopping = path, minutes, stopping
        self.batches: int | None = None  # of the epoch, if it is not over, when saving
        self.cost = 0.0  # seconds that the last one took

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals from Lightning, whose own answer comes too early or too late."""
        self.stopping.install()
        self.saved = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Sample, batch_idx: int
    ) -> None:
        """Save after a step, if it is time or to stop."""
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self._between_steps(trainer, batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the epoch's last step, if it is time or to stop."""
        self._between_steps(trainer, int(trainer.num_training_batches))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Sample,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within validation, which will be done again, if a signal asks for it."""
        asked, _ = self._agreed(trainer)
        if asked:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):  # put the weights in training back
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._save(trainer, int(trainer.num_training_batches))
            raise Stopped(asked)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after each epoch."""
        self._save(trainer, None)
        asked, _ = self._agreed(trainer)
        if asked:
            raise Stopped(asked)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write down where training is: epochs done, and batches of the next one."""
        done = self.batches
        position = (trainer.current_epoch + 1, 0) if done is None else (trainer.current_epoch, done)
        checkpoint["position"] = position
        if done is None:
            return  # Lightning is right about the end of an epoch
        loop = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"
        training, validation = (checkpoint["loops"]["fit_loop"][name] for name in loop)
        for counts in (training["current"], training["total"]):
            counts.update(dict.fromkeys(counts, counts["completed"]))
        over = done == int(trainer.num_training_batches)
        training["is_last_batch"] = over
        if over:  # as if validation had just begun its first batch
            for counts in (validation["current"], validation["total"]):
                counts.update(ready=1, started=1, processed=0, completed=0)

    def _between_steps(self, trainer: pl.Trainer, batches: int) -> None:
        asked, due = self._agreed(trainer)
        if asked or due:
            self._save(trainer, batches)
        if asked:
            raise Stopped(asked)

    def _agreed(self, trainer: pl.Trainer) -> tuple[int, bool]:
        """Return the signal to stop by, if any, and whether to save: the same in all processes."""
        asked = self.stopping.asked
        passed = time.monotonic() - self.saved
        due = self.minutes is not None and passed >= max(60 * self.minutes, self.cost / self.share)
        if trainer.world_size == 1:
            return asked, due
        said = torch.tensor([asked, int(due)], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        return int(said[0]), bool(said[1])

    def _save(self, trainer: pl.Trainer, batches: int | None) -> None:
        """Save.

        Raises:
            ConfigError: the weights are not finite; the file stays as it is.
        """
        for name, weights in trainer.lightning_module.named_parameters():
            if not bool(torch.isfinite(weights.detach()).all()):
                raise ConfigError(
                    f"training: {name.removeprefix('model.')} is not finite after "
                    f"{trainer.global_step} steps; lower optimizer.lr or use trainer.precision=32"
                )
        started, self.batches = time.monotonic(), batches
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saved, self.batches = time.monotonic(), None
        self.cost = self.saved - started


class History(pl.Callback):
    """Writes `history.csv`: one row per epoch with every logged value, and where the time went.

    `seconds` are of the whole epoch, `waiting` those in which training waited for the next batch.

    Args:
        path: of the file.
        watermark: what must stand beside the numbers, if anything.
        loggers: are told every row.
        watch: is told all rows after every epoch; ends training by `EndedEarly`.
    """

    def __init__(
        self,
        path: Path,
        watermark: str | None = None,
        loggers: Loggers | None = None,
        watch: Watch = lambda rows: None,
    ) -> None:
        self.path, self.loggers, self.watch = path, loggers, watch
        self.watermark = {} if watermark is None else {"watermark": watermark}
        self.rows: list[dict[str, float | str]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, and what is known of the next one, for the checkpoint."""
        seconds = time.monotonic() - self.started
        return {"rows": self.rows, "next": (self.lr, seconds, self.waited)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of an earlier process up."""
        self.rows = list(state_dict["rows"])
        self.lr, seconds, self.waited = state_dict.get("next", (0.0, 0.0, 0.0))
        self.started = time.monotonic() - seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to wait for the first batch."""
        self.idle_since = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time and the learning rate."""
        self.started = self.idle_since = time.monotonic()
        self.waited = 0.0
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Sample, batch_idx: int
    ) -> None:
        """Count the wait for this batch."""
        self.waited += time.monotonic() - self.idle_since

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Sample,
        batch_idx: int,
    ) -> None:
        """Begin to wait for the next batch."""
        self.idle_since = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's row."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": self.lr}
        times = {
            "seconds": round(time.monotonic() - self.started, 2),
            "waiting": round(self.waited, 3),
        }
        self.rows.append({**row, **dict(sorted(values.items())), **times, **self.watermark})
        if trainer.is_global_zero:
            if self.loggers:  # first: what the file holds, they are not told again
                self.loggers.log(self.rows[-1])
            write_text(self.path, pd.DataFrame(self.rows).to_csv(index=False, lineterminator="\n"))
            self.watch(self.rows)
