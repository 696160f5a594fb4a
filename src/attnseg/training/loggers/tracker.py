"""The base class of experiment trackers, and the run ids that let a tracker resume a run."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from attnseg.errors import require
from attnseg.files import write_text
from attnseg.training.callbacks.history import HistoryRow


class Tracker(ABC):
    """An experiment tracker with its options; a subclass per tracker."""

    name: str  # In the configuration group `logger`.

    @abstractmethod
    def open(
        self, folder: Path, title: str, parameters: dict[str, Any], rows: list[HistoryRow]
    ) -> Logger:
        """Start a run in the tracker, or resume the one that belongs to this run folder.

        The parameters are the configuration under dotted keys, the rows the epochs already done.
        """

    def finish(self, logger: Logger, values: dict[str, float], epoch: int, status: str) -> None:
        """Log the final scores at the last epoch, if the run was completed, and close the run.

        The status is `success`, `failed` or `stopped`.
        """
        if values:
            logger.log_metrics(values, epoch)
        logger.finalize(status)

    def require_package(self, package: str) -> None:
        """Raise ConfigError with an installation hint if the tracker's package is missing."""
        require(f"logger={self.name}", self.name, package, otherwise="choose another logger")


def finite_values(row: HistoryRow) -> dict[str, float]:
    """Return the finite numbers of a history row without the epoch, which is the x axis."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "epoch" and not isinstance(value, str) and math.isfinite(value)
    }


def tracker_ids(folder: Path) -> dict[str, str]:
    """Return the ids under which trackers know the run of a folder, by tracker name."""
    path = folder / "loggers.json"
    ids: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return ids


def get_or_create_id(folder: Path, name: str, create: Callable[[], str]) -> str:
    """Return a tracker's id for the run of a folder; the first call creates and stores it."""
    ids = tracker_ids(folder)
    if name not in ids:
        ids[name] = create()
        write_text(folder / "loggers.json", json.dumps(ids) + "\n")
    return ids[name]
