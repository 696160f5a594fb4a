"""Experiment trackers: where a run's values are shown while it trains, beside its own folder.

They only listen. What they are told is what `history.csv` and `metrics.json` hold; a tracker that
fails during training is left out with a warning.
"""

import csv
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from attnseg.config.build import build
from attnseg.config.schema import Config
from attnseg.errors import ConfigError, ResourceError, first_line
from attnseg.files import write_text

log = logging.getLogger(__name__)
Row = Mapping[str, float | str]


class Tracker(ABC):
    """One kind of experiment tracker, with its options.

    Attributes:
        name: in the group `logger`.
    """

    name: str

    @abstractmethod
    def open(self, folder: Path, title: str, parameters: dict[str, Any], rows: list[Row]) -> Logger:
        """Begin a run, or go on with the one that an earlier process began for this folder.

        Args:
            folder: the run folder.
            title: what the run is called.
            parameters: the configuration, flat.
            rows: of the epochs done; the next one to come follows them.
        """

    def finish(self, logger: Logger, values: dict[str, float], epoch: int, status: str) -> None:
        """Log the final values and end the run.

        Args:
            logger: from `open`.
            values: the final ones; none if the run was not completed.
            epoch: the last one.
            status: `success`, `failed` or `stopped`.
        """
        if values:
            logger.log_metrics(values, epoch)
        logger.finalize(status)

    def _require(self, package: str) -> None:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"logger={self.name}: {package} is not installed; "
                f"pip install 'attnseg[{self.name}]' or choose another logger"
            )


class TensorBoard(Tracker):
    """Event files in the run folder's `tensorboard/`."""

    name = "tensorboard"

    def open(self, folder: Path, title: str, parameters: dict[str, Any], rows: list[Row]) -> Logger:
        """Begin an event file; TensorBoard drops what older ones say of the epochs to come."""
        self.parameters = parameters
        options: dict[str, Any] = {"purge_step": len(rows) + 1} if rows else {}
        logger = TensorBoardLogger(
            folder, name="", version=self.name, default_hp_metric=False, **options
        )
        logger.log_hyperparams(parameters)
        _ = logger.experiment  # begins the file, so that it is known whether it can be written
        return logger

    def finish(self, logger: Logger, values: dict[str, float], epoch: int, status: str) -> None:
        """Log final values and parameters together, as TensorBoard compares runs by them."""
        if values:
            logger.log_hyperparams(self.parameters, values, epoch)
        logger.finalize(status)


class WandB(Tracker):
    """Weights & Biases.

    Args:
        mode: `offline` leaves everything in the run folder's `wandb/`, for `wandb sync`.
        project: that the run belongs to.
        entity: user or team; `None` for the account's own.
        group: that the run is shown in.
        machine: also record the machine, its load, the command and the code's repository.

    Raises:
        ConfigError: wandb is not installed.
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
        self._require("wandb")
        self.mode, self.project, self.entity, self.group = mode, project, entity, group
        self.machine = machine

    def open(self, folder: Path, title: str, parameters: dict[str, Any], rows: list[Row]) -> Logger:
        """Begin or go on under the id that the folder keeps.

        Offline runs cannot be continued: a new one takes the place of an earlier process's, and is
        told its epochs first.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # calls home, even offline
        import wandb

        if self.mode == "offline":
            for earlier in (folder / "wandb").glob("offline-run-*"):
                shutil.rmtree(earlier)
        run = wandb.init(
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            group=self.group,
            dir=folder,
            id=_kept(folder, self.name, lambda: uuid.uuid4().hex[:12]),
            name=title,
            resume="allow" if self.mode == "online" else None,
            config=parameters,
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=30,
                finish_timeout=60,  # what is not sent by then, `wandb sync` sends later
                disable_git=not self.machine,
                disable_code=not self.machine,
                x_disable_meta=not self.machine,
                x_disable_machine_info=not self.machine,
                x_disable_stats=not self.machine,
                x_save_requirements=self.machine,
            ),
        )
        logger = _WandbLogger(experiment=run)
        if self.mode == "offline":
            for row in rows:
                logger.log_metrics(_numbers(row), int(row["epoch"]))
        return logger

    def finish(self, logger: Logger, values: dict[str, float], epoch: int, status: str) -> None:
        """Log the final values as the run's summary, and wait until all is sent or written."""
        import wandb

        run = logger.experiment  # type: ignore[attr-defined]
        run.summary.update(values)
        run.finish(exit_code=0 if status == "success" else 1)
        wandb.teardown()  # its service is a process of its own


class _WandbLogger(WandbLogger):
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log by W&B's own step: what a resumed run says again of an epoch is then dropped."""
        self.experiment.log(dict(metrics), step=step)


class MLflow(Tracker):
    """MLflow.

    Args:
        uri: of a server (`http://...`), a data base (`sqlite:///...`) or a folder; `None` for the
            folder `mlruns` in the run folder.
        experiment: that the run belongs to.

    Raises:
        ConfigError: mlflow is not installed.
    """

    name = "mlflow"

    def __init__(self, uri: str | None, experiment: str) -> None:
        self._require("mlflow")
        self.uri, self.experiment = uri, experiment

    def open(self, folder: Path, title: str, parameters: dict[str, Any], rows: list[Row]) -> Logger:
        """Begin or go on with the run whose id the folder keeps."""
        # Read at import: no usage reports, and plain folders stay allowed.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Of minutes, for a server that does not answer.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        for name in ("mlflow", "pytorch_lightning.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        uri = self.uri or (folder / "mlruns").resolve().as_uri()
        begun = _ids(folder).get(self.name)
        logger = _MLFlowLogger(self.experiment, title, uri, run_id=begun)
        _kept(folder, self.name, lambda: str(logger.run_id))
        if begun is None:
            logger.log_hyperparams(parameters)
        else:
            logger.experiment.update_run(begun, status="RUNNING")
        for metric in logger.experiment.get_run(logger.run_id).data.metrics:
            history = logger.experiment.get_metric_history(logger.run_id, metric)
            logger.said[metric] = max(one.step for one in history)
        return logger

    def finish(self, logger: Logger, values: dict[str, float], epoch: int, status: str) -> None:
        """Log the final values and say how the run ended."""
        super().finish(logger, values, epoch, {"stopped": "KILLED"}.get(status, status))


class _MLFlowLogger(MLFlowLogger):
    """Keeps the last step of each metric: MLflow would show what it is told twice twice."""

    def __init__(self, experiment: str, title: str, uri: str, run_id: str | None) -> None:
        super().__init__(experiment, title, uri, run_id=run_id)
        self.said: dict[str, int] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what was not logged yet."""
        named = {_dotted(name): value for name, value in metrics.items()}
        new = {k: v for k, v in named.items() if (step or 0) > self.said.get(k, -1)}
        super().log_metrics(new, step)


class Loggers:
    """The trackers of one run.

    Args:
        config: of the run; each of its loggers is tried.

    Raises:
        ConfigError: an option is unknown or wrong, or a package is missing.
    """

    def __init__(self, config: Config) -> None:
        self.trackers: list[Tracker] = [
            build(f"logger.{name}", node) for name, node in config.logger.items()
        ]
        choices = config.choices
        self.title = "/".join((config.dataset_name, choices["model"], choices["attn"]))
        self.parameters = flat(config.model_dump(by_alias=True, exclude={"logger", "paths"}))
        self.opened: dict[Tracker, Logger] = {}
        self.epoch = 0

    def open(self, folder: Path, watermark: str | None = None) -> None:
        """Begin, or go on after the epochs of the folder's `history.csv`.

        Raises:
            ResourceError: a tracker cannot be reached.
        """
        self.folder, rows = folder, read_history(folder / "history.csv")
        self.epoch = len(rows)
        title = f"{self.title}/{folder.name}"
        parameters = self.parameters | ({"watermark": watermark} if watermark else {})
        for tracker in self.trackers:
            try:
                logger = tracker.open(folder, title, parameters, rows)
            except Exception as error:
                log.debug("The logger failed", exc_info=True)
                raise ResourceError(
                    f"logger={tracker.name}: cannot begin ({first_line(error)}); "
                    "mend it or leave the logger out"
                ) from error
            self.opened[tracker] = logger

    def log(self, row: Row) -> None:
        """Log an epoch's row of the history, unless that was done before."""
        epoch = int(row["epoch"])
        if epoch <= self.epoch:
            return
        self.epoch = epoch
        for tracker, logger in list(self.opened.items()):
            with _or_without(self.opened, tracker):
                logger.log_metrics(_numbers(row), epoch)
                logger.save()

    def finish(self, status: str) -> None:
        """Log what a successful run left in `metrics.json`, and end.

        Args:
            status: `success`, `failed` or `stopped`.
        """
        values = {}
        if status == "success" and self.opened:
            values = final_values(json.loads((self.folder / "metrics.json").read_text()))
        for tracker, logger in list(self.opened.items()):
            with _or_without(self.opened, tracker):
                tracker.finish(logger, values, self.epoch, status)
        self.opened.clear()


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options under dotted keys; lists as text."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.")
        else:
            plain = value is None or isinstance(value, bool | int | float | str)
            found[key] = value if plain else str(list(value))
    return found


def final_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the means in `metrics.json` as `<split>/<profile>/<metric>[/<class>]`.

    Undefined ones are left out; a watched test set is not called `test`.
    """
    profile = metrics["profile"]["name"]
    found: dict[str, float] = {}
    for split in ("val", "test"):
        scores = metrics.get(split)
        if scores is None:
            continue
        shown = f"watched_{split}" if "watermark" in metrics else split
        for name, row in {"": scores["mean"], **scores["classes"]}.items():
            for metric, value in row.items():
                if isinstance(value, float):
                    key = f"{shown}/{profile}/{metric}"
                    found[f"{key}/{name}" if name else key] = value
    return found


def read_history(path: Path) -> list[Row]:
    """Return the rows of a `history.csv`; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as lines:
        return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(lines)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(row: Row) -> dict[str, float]:
    """Return what can be drawn of a row, less the epoch, which is the axis."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "epoch" and not isinstance(value, str) and math.isfinite(value)
    }


def _dotted(name: str) -> str:
    """Return a metric's name with its first slash only: a store of files has no `a/b` and `a/b/c`.

    What MLflow does not allow in names becomes `_`.
    """
    first, slash, rest = name.partition("/")
    return first + slash + re.sub(r"[^\w. -]", "_", rest.replace("/", "."), flags=re.ASCII)


def _ids(folder: Path) -> dict[str, str]:
    """Return the ids that trackers know the folder's run by."""
    path = folder / "loggers.json"
    found: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _kept(folder: Path, name: str, make: Callable[[], str]) -> str:
    """Return a tracker's id for the folder's run; make and keep it the first time."""
    ids = _ids(folder)
    if name not in ids:
        ids[name] = make()
        write_text(folder / "loggers.json", json.dumps(ids) + "\n")
    return ids[name]


@contextmanager
def _or_without(opened: dict[Tracker, Logger], tracker: Tracker) -> Iterator[None]:
    """Leave a tracker out if it fails: no run ends because its numbers cannot be shown."""
    try:
        yield
    except Exception as error:
        log.warning("logger=%s: left out from here on (%s)", tracker.name, first_line(error))
        log.debug("The logger failed", exc_info=True)
        opened.pop(tracker, None)
