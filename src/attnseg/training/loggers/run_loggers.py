"""Feeds a run's experiment trackers with its history and final scores.

Trackers only receive what `history.csv` and `metrics.json` hold and never influence a run. One that
fails during training is dropped with a warning.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.loggers import Logger

from attnseg.config.build import build
from attnseg.config.nodes import flatten_options
from attnseg.config.training import Config
from attnseg.errors import ResourceError, first_line
from attnseg.runs.run_folder import RunFolder
from attnseg.training.callbacks.history import HistoryRow
from attnseg.training.loggers.tracker import Tracker, finite_values

log = logging.getLogger(__name__)


class RunLoggers:
    """The trackers of one run, all built at once, so that mistakes show before training."""

    def __init__(self, config: Config) -> None:
        self.trackers: list[Tracker] = [
            build(f"logger.{name}", node) for name, node in config.logger.items()
        ]
        self.title = f"{config.dataset_name}/{config.choices['model']}/{config.choices['attn']}"
        options = config.model_dump(by_alias=True, exclude={"logger", "paths"})
        self.parameters = list_parameters(options)
        self.opened: dict[Tracker, Logger] = {}
        self.epoch = 0

    def open(self, folder: RunFolder, watermark: str | None = None) -> None:
        """Start every tracker, or resume it after the epochs in the folder's `history.csv`."""
        self.folder, rows = folder, folder.history_rows()
        self.epoch = len(rows)
        title = f"{self.title}/{folder.name}"
        parameters = self.parameters | ({"watermark": watermark} if watermark else {})
        for tracker in self.trackers:
            try:
                logger = tracker.open(folder.path, title, parameters, rows)
            except Exception as error:
                log.debug("The logger failed", exc_info=True)
                raise ResourceError(
                    f"logger={tracker.name}: cannot begin ({first_line(error)}); "
                    "mend it or leave the logger out"
                ) from error
            self.opened[tracker] = logger

    def log_epoch(self, row: HistoryRow) -> None:
        """Log an epoch's history row, unless an earlier process has done so."""
        epoch = int(row["epoch"])
        if epoch <= self.epoch:
            return
        self.epoch = epoch
        for tracker, logger in list(self.opened.items()):
            with self._dropped_on_failure(tracker):
                logger.log_metrics(finite_values(row), epoch)
                logger.save()

    def finish(self, status: str) -> None:
        """Log the scores in `metrics.json` if the status is `success`, and close every tracker."""
        succeeded = status == "success" and self.opened
        values = final_scores(self.folder.metrics) if succeeded else {}
        for tracker, logger in list(self.opened.items()):
            with self._dropped_on_failure(tracker):
                tracker.finish(logger, values, self.epoch, status)
        self.opened.clear()

    @contextmanager
    def _dropped_on_failure(self, tracker: Tracker) -> Iterator[None]:
        """Drop a tracker that raises: no run ends because its numbers cannot be shown."""
        try:
            yield
        except Exception as error:
            log.warning("logger=%s: left out from here on (%s)", tracker.name, first_line(error))
            log.debug("The logger failed", exc_info=True)
            self.opened.pop(tracker, None)


def list_parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested options under dotted keys, with lists as text and without empty mappings."""
    return {
        key: str(list(value)) if isinstance(value, list | tuple) else value
        for key, value in flatten_options(options)
        if value != {}
    }


def final_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean scores in `metrics.json` as `<split>/<profile>/<metric>[/<class>]`.

    Undefined scores are left out. The scores of a watched test set are named `watched_test/...`.
    """
    profile = metrics["profile"]["name"]
    scores: dict[str, float] = {}
    for split in (name for name in ("val", "test") if name in metrics):
        shown = f"watched_{split}" if "watermark" in metrics else split
        rows = {"": metrics[split]["mean"], **metrics[split]["classes"]}
        for class_name, row in rows.items():
            for metric, value in row.items():
                if isinstance(value, float):
                    key = f"{shown}/{profile}/{metric}"
                    scores[f"{key}/{class_name}" if class_name else key] = value
    return scores
