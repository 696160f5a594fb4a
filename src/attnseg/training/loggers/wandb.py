"""Weights & Biases, offline in the run folder's `wandb/` unless told otherwise."""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, WandbLogger

from attnseg.training.callbacks.history import HistoryRow
from attnseg.training.loggers.tracker import Tracker, finite_values, get_or_create_id


class WandB(Tracker):
    """Logs to Weights & Biases.

    Args:
        mode: `offline` keeps everything in the run folder's `wandb/`, for `wandb sync`.
        project: project of the run.
        entity: user or team; `None` for the account's default.
        group: group under which the run is displayed.
        machine: also record the machine, its load, the command and the code's repository.
    """

    name = "wandb"

    def __init__(
        self,
        mode: Literal["offline", "online"],
        project: str,
        entity: str | None,
        group: str | None,
        machine: bool,
    ) -> None:
        self.require_package("wandb")
        self.mode, self.project, self.entity, self.group = mode, project, entity, group
        self.machine = machine

    def open(
        self, folder: Path, title: str, parameters: dict[str, Any], rows: list[HistoryRow]
    ) -> Logger:
        """Start or resume the run under the id that is stored in the run folder.

        W&B cannot resume offline runs: a new run replaces the interrupted one, and the epochs that
        are already done are logged to it first.
        """
        # By default wandb reports its own errors over the network, even offline.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if self.mode == "offline":
            for interrupted in (folder / "wandb").glob("offline-run-*"):
                shutil.rmtree(interrupted)
        run = wandb.init(
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            group=self.group,
            dir=folder,
            id=get_or_create_id(folder, self.name, lambda: uuid.uuid4().hex[:12]),
            name=title,
            resume="allow" if self.mode == "online" else None,
            config=parameters,
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=30,
                finish_timeout=60,  # Values not sent by then can be sent with `wandb sync`.
                disable_git=not self.machine,
                disable_code=not self.machine,
                x_disable_meta=not self.machine,
                x_disable_machine_info=not self.machine,
                x_disable_stats=not self.machine,
                x_save_requirements=self.machine,
            ),
        )
        logger = _StepwiseWandbLogger(experiment=run)
        if self.mode == "offline":
            for row in rows:
                logger.log_metrics(finite_values(row), int(row["epoch"]))
        return logger

    def finish(self, logger: Logger, values: dict[str, float], epoch: int, status: str) -> None:
        """Store the final values in the run's summary and wait until all is sent or written."""
        import wandb

        run = logger.experiment  # type: ignore[attr-defined]
        run.summary.update(values)
        run.finish(exit_code=0 if status == "success" else 1)
        wandb.teardown()  # W&B's background service would otherwise outlive this process.


class _StepwiseWandbLogger(WandbLogger):
    """Logs with W&B's own step, so that W&B drops epochs which a resumed run logs again."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values at a step."""
        self.experiment.log(dict(metrics), step=step)
