"""MLflow: a server, a data base, or the folder `mlruns/` in the run folder."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger

from attnseg.training.callbacks.history import HistoryRow
from attnseg.training.loggers.tracker import Tracker, get_or_create_id, tracker_ids


class MLflow(Tracker):
    """Logs to MLflow.

    Args:
        uri: of a server (`http://...`), a data base (`sqlite:///...`) or a folder; `None` for the
            folder `mlruns` in the run folder.
        experiment: MLflow experiment of the run.
    """

    name = "mlflow"

    def __init__(self, uri: str | None, experiment: str) -> None:
        self.require_package("mlflow")
        self.uri, self.experiment = uri, experiment

    def open(
        self, folder: Path, title: str, parameters: dict[str, Any], rows: list[HistoryRow]
    ) -> Logger:
        """Start or resume the run whose id is stored in the run folder."""
        # MLflow reads these at import: no usage reports, and plain folders stay allowed.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # The defaults wait for minutes when a server does not answer.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        for name in ("mlflow", "pytorch_lightning.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        uri = self.uri or (folder / "mlruns").resolve().as_uri()
        earlier_id = tracker_ids(folder).get(self.name)
        logger = _IdempotentMLFlowLogger(self.experiment, title, uri, run_id=earlier_id)
        get_or_create_id(folder, self.name, lambda: str(logger.run_id))
        if earlier_id is None:
            logger.log_hyperparams(parameters)
        else:
            logger.experiment.update_run(earlier_id, status="RUNNING")
        for metric in logger.experiment.get_run(logger.run_id).data.metrics:
            points = logger.experiment.get_metric_history(logger.run_id, metric)
            logger.last_steps[metric] = max(point.step for point in points)
        return logger

    def finish(self, logger: Logger, values: dict[str, float], epoch: int, status: str) -> None:
        """Log the final values and set the run's status."""
        super().finish(logger, values, epoch, {"stopped": "KILLED"}.get(status, status))


class _IdempotentMLFlowLogger(MLFlowLogger):
    """Skips steps that are already logged: MLflow itself would show them twice."""

    def __init__(self, experiment: str, title: str, uri: str, run_id: str | None) -> None:
        super().__init__(experiment, title, uri, run_id=run_id)
        self.last_steps: dict[str, int] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the values that are not yet stored for this step."""
        named = {_mlflow_name(name): value for name, value in metrics.items()}
        new = {k: v for k, v in named.items() if (step or 0) > self.last_steps.get(k, -1)}
        super().log_metrics(new, step)


def _mlflow_name(name: str) -> str:
    """Return a metric's name with its first slash only: a file store cannot hold `a/b` and `a/b/c`.

    Characters that MLflow does not allow in names become `_`.
    """
    first, slash, rest = name.partition("/")
    return first + slash + re.sub(r"[^\w. -]", "_", rest.replace("/", "."), flags=re.ASCII)
