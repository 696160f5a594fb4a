"""Callbacks that record what each epoch logs.

`History` writes one row per epoch to `history.csv` and passes it on, to experiment trackers for
example. `ProfileScores` adds scores of whole validation cases to the logged values, `Diagnostics`
the learned scalars that attentions declare.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl

from attnseg.config.cost import find_attentions
from attnseg.files import write_text

HistoryRow = Mapping[str, float | str]
OnEpoch = Callable[[Sequence[HistoryRow]], None]  # receives the history, the latest epoch last


class EndedEarly(Exception):
    """Raised by an `on_epoch` function to end a run before its last epoch."""


class History(pl.Callback):
    """Writes `history.csv` with every logged value and the time of each epoch.

    The column `seconds` is the time of the whole epoch, `waiting` the part of it in which training
    waited for the next batch.

    Args:
        path: of `history.csv`.
        watermark: if the test set was watched during training, text that says so in every row.
        log_epoch: called with the new row of every epoch before it is written.
        on_epoch: called with all rows after every epoch; this function may raise `EndedEarly`.
    """

    def __init__(
        self,
        path: Path,
        watermark: str | None = None,
        log_epoch: Callable[[HistoryRow], None] = lambda row: None,
        on_epoch: OnEpoch = lambda rows: None,
    ) -> None:
        self.path, self.log_epoch, self.on_epoch = path, log_epoch, on_epoch
        self.watermark = {} if watermark is None else {"watermark": watermark}
        self.rows: list[dict[str, float | str]] = []
        # Of the current epoch; a run that resumes within an epoch restores them.
        self.lr, self.waited, self.started = 0.0, 0.0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far and the measurements of the unfinished epoch."""
        seconds = time.monotonic() - self.started
        return {"rows": self.rows, "next": (self.lr, seconds, self.waited)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the history of an earlier process."""
        self.rows = list(state_dict["rows"])
        self.lr, seconds, self.waited = state_dict.get("next", (0.0, 0.0, 0.0))
        self.started = time.monotonic() - seconds

    def on_train_start(self, *args: object, **kwargs: object) -> None:
        """Start timing the wait for the first batch."""
        self.idle_since = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the time and the learning rate."""
        self.started = self.idle_since = time.monotonic()
        self.waited = 0.0
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_start(self, *args: object, **kwargs: object) -> None:
        """Add up the wait for this batch."""
        self.waited += time.monotonic() - self.idle_since

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        """Start timing the wait for the next batch."""
        self.idle_since = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's row, pass it to trackers, write the file and call `on_epoch`."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": self.lr}
        seconds = time.monotonic() - self.started
        times = {"seconds": round(seconds, 2), "waiting": round(self.waited, 3)}
        self.rows.append({**row, **dict(sorted(values.items())), **times, **self.watermark})
        if trainer.is_global_zero:
            # Trackers come first: epochs that the file lacks are sent again when a run resumes, so
            # that an interruption between the two loses none.
            self.log_epoch(self.rows[-1])
            write_text(self.path, pd.DataFrame(self.rows).to_csv(index=False, lineterminator="\n"))
            self.on_epoch(self.rows)


class ProfileScores(pl.Callback):
    """Scores whole validation cases every `every` epochs; `score` returns each metric's mean."""

    def __init__(self, every: int, score: Callable[[], dict[str, float]]) -> None:
        self.every, self.score = every, score

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the scores to the epoch's logged values if the epoch is due."""
        if trainer.is_global_zero and (trainer.current_epoch + 1) % self.every == 0:
            for metric, value in self.score().items():
                pl_module.log(f"val/{metric}", value, rank_zero_only=True)


class Diagnostics(pl.Callback):
    """Adds the learned scalars that a model's attentions declare, each as `layer/name`.

    They are of the weights that are validated; see `TokenMixer.diagnostics`.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the scalars to the epoch's logged values."""
        model: Any = pl_module.model
        for layer, mixer in find_attentions(model).items():
            for name, value in mixer.diagnostics().items():
                # A sharded parameter is gathered from all processes.
                whole = getattr(value, "full_tensor", lambda value=value: value)()
                pl_module.log(f"{layer}/{name}", float(whole))
