"""TensorBoard: event files in the run folder's `tensorboard/`."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from attnseg.training.callbacks.history import HistoryRow
from attnseg.training.loggers.tracker import Tracker


class TensorBoard(Tracker):
    """Writes TensorBoard event files."""

    name = "tensorboard"

    def open(
        self, folder: Path, title: str, parameters: dict[str, Any], rows: list[HistoryRow]
    ) -> Logger:
        """Start an event file; TensorBoard then ignores later epochs in older event files."""
        self.parameters = parameters
        first = len(rows) + 1 if rows else None
        logger = TensorBoardLogger(
            folder, name="", version=self.name, default_hp_metric=False, purge_step=first
        )
        logger.log_hyperparams(parameters)
        _ = logger.experiment  # Creating the file now reports an unwritable folder at once.
        return logger

    def finish(self, logger: Logger, values: dict[str, float], epoch: int, status: str) -> None:
        """Log final values together with the parameters: TensorBoard compares runs by both."""
        if values:
            logger.log_hyperparams(self.parameters, values, epoch)
        logger.finalize(status)
