"""Run folders: where one training leaves everything, and the only place that reads it."""

import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import yaml

from attnseg.config.training import Config, parse_config
from attnseg.errors import ConfigError, DataError, first_line
from attnseg.files import write_text
from attnseg.processes.lock import is_held
from attnseg.runs.facts import RunFacts

if TYPE_CHECKING:
    import pandas as pd

    from attnseg.models.model import SegmentationModel

CASE_COLUMNS = ("split", "patient", "case", "class", "metric", "profile")  # of text
T = TypeVar("T")


class RunFolder(os.PathLike[str]):
    """The folder of one run.

    Every file is read when it is first asked for, and kept; open the folder anew to see what a run
    in progress has written since. Reading needs no torch, except for `model`.

    Args:
        path: of the folder, which need not exist.

    Attributes:
        path: of the folder.
        name: the run's id, with a number if the run was repeated.
        facts_file: `run.json`, by which a folder is known to hold a run.
        config_file: the configuration as YAML.
        history_file: a row per epoch.
        cases_file: a row per case, class and metric.
        metrics_file: means and intervals.
        split_file: role and digest of each case.
        log_file: messages of all attempts.
        lock_file: held while a process trains the run.
        best_checkpoint: the weights that are evaluated.
        last_checkpoint: the state from which a run that was cut off goes on.
        checkpoints: folder of both.
        previews: folder of the best, median and worst case, drawn.
        pictures: folder of the slices that the comparison's page shows.
        evaluation: folder of later scores, with a folder for each split.
        attention: folder of attention maps.
        export: folder of the network in other formats.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.facts_file = self.path / "run.json"
        self.config_file = self.path / "config.yaml"
        self.history_file = self.path / "history.csv"
        self.cases_file = self.path / "cases.csv"
        self.metrics_file = self.path / "metrics.json"
        self.split_file = self.path / "split.csv"
        self.log_file = self.path / "run.log"
        self.lock_file = self.path / "lock"
        self.checkpoints = self.path / "checkpoints"
        self.best_checkpoint = self.checkpoints / "best.ckpt"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.previews = self.path / "previews"
        self.pictures = self.path / "pictures"
        self.evaluation = self.path / "evaluation"
        self.attention = self.path / "attention"
        self.export = self.path / "export"

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunFolder) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def outputs(self) -> Path:
        """Folder of `paths.outputs`: below it are dataset, model, attention and this folder."""
        return self.path.resolve().parents[3]

    @property
    def exists(self) -> bool:
        """Whether there is a run in the folder."""
        return self.facts_file.is_file()

    @cached_property
    def facts(self) -> RunFacts:
        """`run.json`.

        Raises:
            DataError: it cannot be read.
        """
        return self._read(self.facts_file, RunFacts.from_json)

    @property
    def status(self) -> str:
        """`done`, `training`, `cut off`, `stopped` or `failed`.

        Raises:
            DataError: `run.json` cannot be read.
        """
        if self.facts.status == "running":
            return "training" if is_held(self.lock_file) else "cut off"
        return self.facts.status

    @cached_property
    def raw_config(self) -> Mapping[str, Any]:
        """`config.yaml` as plain containers, with the options of the version that wrote it.

        Raises:
            DataError: it cannot be read.
        """
        return self._read(self.config_file, lambda text: _mapping(yaml.safe_load(text)))

    @property
    def config(self) -> Config:
        """The configuration, checked.

        Raises:
            DataError: a file cannot be read.
            ConfigError: this version does not know an option.
        """
        return parse_config({**self.raw_config, "choices": self.facts.choices})

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """`metrics.json`: profile, and means and intervals for each split that was scored.

        Raises:
            DataError: it cannot be read.
        """
        return self._read(self.metrics_file, lambda text: _mapping(json.loads(text)))

    @cached_property
    def cases(self) -> "pd.DataFrame":
        """`cases.csv`: a row per case, class and metric; an undefined `value` is NaN.

        Raises:
            DataError: it cannot be read, or a column is missing.
        """
        import pandas as pd

        text = {name: str for name in CASE_COLUMNS}
        try:  # A patient may be called 007 or NA: only an empty value is undefined.
            table = pd.read_csv(
                self.cases_file, dtype=text, keep_default_na=False, na_values={"value": [""]}
            )
        except (OSError, ValueError) as error:
            raise _unreadable(self.cases_file, error) from error
        if missing := [name for name in (*CASE_COLUMNS, "value") if name not in table]:
            raise DataError(f"{self.cases_file}: no column {', '.join(missing)}; train again")
        return table

    @cached_property
    def history(self) -> "pd.DataFrame":
        """`history.csv`: a row per epoch; empty before the first one ends.

        Raises:
            DataError: it cannot be read.
        """
        import pandas as pd

        try:
            return pd.read_csv(self.history_file)
        except FileNotFoundError:
            return pd.DataFrame()
        except (OSError, ValueError) as error:
            raise _unreadable(self.history_file, error) from error

    def history_rows(self) -> list[Mapping[str, float | str]]:
        """Return the history as a mapping per epoch; an undefined value is NaN."""
        names = [str(name) for name in self.history]
        rows = self.history.to_numpy(object)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @cached_property
    def split(self) -> "pd.DataFrame":
        """`split.csv`: patient, case, role and digest, all as text.

        Raises:
            DataError: it cannot be read.
        """
        import pandas as pd

        try:
            return pd.read_csv(self.split_file, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise _unreadable(self.split_file, error) from error

    def model(self) -> "SegmentationModel":
        """Return the model with its best weights, in evaluation mode.

        Raises:
            ConfigError: the run is not finished, or is from before runs noted their data.
            CheckpointError: the weights are missing, damaged or do not fit.
        """
        from attnseg.runs.reopen import load_model  # imports torch

        return load_model(self)

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.facts.seed

    @property
    def fold(self) -> str:
        """Digest of who trained, validated and tested."""
        return self.facts.split_digest

    @property
    def profile(self) -> Mapping[str, Any]:
        """The metric convention, with its name and digest."""
        profile: Mapping[str, Any] = self.metrics["profile"]
        return profile

    @property
    def watermark(self) -> str | None:
        """The mark that must stand beside every number, if any."""
        return self.facts.watermark or self.metrics.get("watermark")

    def option(self, key: str) -> object:
        """Return the name chosen in a group, or the value of a dotted key of the configuration.

        Raises:
            ConfigError: there is neither.
        """
        choices = self.facts.choices
        if key in choices:
            return choices[key]
        node: Any = self.raw_config
        for name in key.split("."):
            if not isinstance(node, Mapping) or name not in node:
                raise ConfigError(
                    f"by: {self} has no {key!r}; choose among {', '.join(choices)} "
                    "or give a key of its config.yaml"
                )
            node = node[name]
        return node

    def require_done(self) -> Self:
        """Return this folder if its run is finished.

        Raises:
            ConfigError: it is no run folder, or the run is not finished.
        """
        try:
            facts, _ = self.facts, self.raw_config
        except DataError as error:
            raise ConfigError(
                f"{self}: not a run folder; give one that holds config.yaml and run.json"
            ) from error
        if facts.status != "done":
            raise ConfigError(f"{self}: the run is {facts.status}, not done; train it first")
        return self

    def _read(self, path: Path, parse: Callable[[str], T]) -> T:
        try:
            return parse(path.read_text())
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise _unreadable(path, error) from error


def list_run_folders(root: Path, pattern: str = "**") -> list[RunFolder]:
    """Return the run folders below a folder that a glob pattern names, sorted by path."""
    return [RunFolder(path.parent) for path in sorted(root.glob(f"{pattern}/run.json"))]


def write_scores(
    folder: str | os.PathLike[str], scores: "pd.DataFrame", metrics: Mapping[str, Any]
) -> None:
    """Write `cases.csv` and `metrics.json` into a run folder, or a folder laid out like one."""
    target = RunFolder(folder)
    target.path.mkdir(parents=True, exist_ok=True)
    write_text(target.cases_file, scores.to_csv(index=False, lineterminator="\n"))
    write_text(target.metrics_file, json.dumps(metrics, indent=1, allow_nan=False) + "\n")


def _mapping(node: object) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise ValueError("no keys in it")
    return node


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({first_line(error)}); train again")
