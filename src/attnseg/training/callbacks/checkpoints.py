"""Checkpoint callbacks: `best.ckpt` by the monitored value, `last.ckpt` for exact resume."""

import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor

from attnseg.data.slices import Sample
from attnseg.errors import ConfigError
from attnseg.processes.signals import Stopped, Stopping


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, also when the run folder has been moved since the last epoch."""

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        super().__init__(
            folder, filename="best", monitor=monitor, mode=mode, enable_version_counter=False
        )

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Return whether a value is the best so far; a value that is not finite never is."""
        if current is None or not math.isfinite(float(current)):
            return False
        return super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of an earlier process with its paths moved to this folder."""

        def move(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        state = {**state_dict, "dirpath": self.dirpath}
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = move(state[name])
        best = {move(path): value for path, value in state["best_k_models"].items()}
        super().load_state_dict({**state, "best_k_models": best})


class LastCheckpoint(pl.callbacks.Checkpoint):
    """Keeps `last.ckpt`, from which the same command resumes to a bit-identical end.

    It is written between two optimizer steps: after each epoch, every few minutes, and when a
    signal asks the run to stop. Lightning's loop counters in the checkpoint are rewritten so that
    training resumes at exactly this step; `SliceDataModule.first_batch` lets the loader begin with
    the next batch.

    Within an epoch, `minutes` lie between checkpoints; `None` writes one per epoch only. The
    interval grows where saving is slow, so that it never takes more than `share` of the time.
    """

    share = 0.05

    def __init__(self, path: Path, minutes: float | None, stopping: Stopping) -> None:
        self.path, self.minutes, self.stopping = path, minutes, stopping
        self.batches: int | None = None  # While saving within an epoch: its batches done so far.
        self.save_seconds = 0.0  # Duration of the last save.

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install our signal handlers: Lightning's own react too early or too late."""
        self.stopping.install()
        self.saved_at = time.monotonic()
        if trainer.world_size > 1:  # By NCCL, the processes would wait for their GPUs.
            self.group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Sample, batch_idx: int
    ) -> None:
        """After an optimizer step, save if it is due and stop if a signal asks for it."""
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self._save_or_stop(trainer, batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the epoch's last step, save if it is due and stop if a signal asks for it."""
        self._save_or_stop(trainer, int(trainer.num_training_batches))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Sample,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within validation if a signal asks for it; the resumed run validates again."""
        signal, _ = self._signal_and_due(trainer)
        if signal:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):  # Restores the weights in training.
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._save(trainer, int(trainer.num_training_batches))
            raise Stopped(signal)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after each epoch."""
        self._save(trainer, None)
        signal, _ = self._signal_and_due(trainer)
        if signal:
            raise Stopped(signal)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the position in training: epochs done, and batches of the next epoch done."""
        done = self.batches
        position = (trainer.current_epoch + 1, 0) if done is None else (trainer.current_epoch, done)
        checkpoint["position"] = position
        if done is None:
            return  # Lightning's own counters are right at the end of an epoch.
        names = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"
        training, validation = (checkpoint["loops"]["fit_loop"][name] for name in names)
        for counts in (training["current"], training["total"]):
            counts.update(dict.fromkeys(counts, counts["completed"]))
        all_done = done == int(trainer.num_training_batches)
        training["is_last_batch"] = all_done
        if all_done:  # The counters then say that validation has just begun its first batch.
            for counts in (validation["current"], validation["total"]):
                counts.update(ready=1, started=1, processed=0, completed=0)

    def _save_or_stop(self, trainer: pl.Trainer, batches: int) -> None:
        signal, due = self._signal_and_due(trainer)
        if signal or due:
            self._save(trainer, batches)
        if signal:
            raise Stopped(signal)

    def _signal_and_due(self, trainer: pl.Trainer) -> tuple[int, bool]:
        """Return the signal to stop by (0 if none) and whether to save, alike in all processes."""
        signal = self.stopping.asked
        least = self.save_seconds / self.share
        passed = time.monotonic() - self.saved_at
        due = self.minutes is not None and passed >= max(60 * self.minutes, least)
        if trainer.world_size == 1:
            return signal, due
        both = torch.tensor([signal, int(due)])
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX, group=self.group)
        return int(both[0]), bool(both[1])

    def _save(self, trainer: pl.Trainer, batches: int | None) -> None:
        """Write the checkpoint; if a weight is not finite, keep the previous one and raise."""
        named = trainer.lightning_module.named_parameters()
        finite = {name: torch.isfinite(weights.detach()).all() for name, weights in named}
        for name, whole in finite.items():  # The first of them waits for the GPU, and once.
            if not bool(whole):
                raise ConfigError(
                    f"training: {name.removeprefix('model.')} is not finite after "
                    f"{trainer.global_step} steps; lower optimizer.lr or use trainer.precision=32"
                )
        started, self.batches = time.monotonic(), batches
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saved_at, self.batches = time.monotonic(), None
        self.save_seconds = self.saved_at - started
