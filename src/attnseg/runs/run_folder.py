"""The folder of a training run: its files, and the only code that reads them."""

import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from attnseg.config.aliases import check_aliases
from attnseg.config.training import Config, parse_config
from attnseg.errors import ConfigError, DataError, first_line
from attnseg.files import file_digest, write_json, write_text
from attnseg.plugins import explain_absence, list_plugins
from attnseg.processes.lock import is_held
from attnseg.runs.facts import RunFacts

if TYPE_CHECKING:
    import pandas as pd

    from attnseg.models.model import SegmentationModel

log = logging.getLogger(__name__)
CONFIG_PARTS = ("model", "dataset", "trainer", "paths", "profile")  # of every version
CASE_COLUMNS = ("split", "patient", "case", "class", "metric", "profile")  # of text


class RunFolder(os.PathLike[str]):
    """The folder of one run.

    Every file is read when it is first asked for, and kept; open the folder anew to see what a run
    in progress has written since. Properties raise a `DataError` if their file cannot be read.
    Reading needs no torch, except for `model`. The folder need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._warned = False  # of plugins that have changed
        self.name = self.path.name  # the run's id, with a number if the run was repeated
        self.facts_file = self.path / "run.json"  # by which a folder is known to hold a run
        self.config_file = self.path / "config.yaml"
        self.history_file = self.path / "history.csv"  # a row per epoch
        self.cases_file = self.path / "cases.csv"  # a row per case, class and metric
        self.metrics_file = self.path / "metrics.json"  # means and intervals
        self.split_file = self.path / "split.csv"  # role and digest of each case
        self.conversion_file = self.path / "conversion.json"  # of a run that converts another one
        self.log_file = self.path / "run.log"  # messages of all attempts
        self.lock_file = self.path / "lock"  # held while a process trains the run
        self.checkpoints = self.path / "checkpoints"
        self.best_checkpoint = self.checkpoints / "best.ckpt"  # the weights that are evaluated
        self.last_checkpoint = self.checkpoints / "last.ckpt"  # from which a run is resumed
        self.previews = self.path / "previews"  # the best, median and worst case, drawn
        self.pictures = self.path / "pictures"  # slices for the comparison's page
        self.evaluation = self.path / "evaluation"  # later scores, with a folder for each split
        self.attention = self.path / "attention"  # attention maps
        self.export = self.path / "export"  # the network in other formats

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
        """`run.json`."""
        with _reading(self.facts_file):
            return RunFacts.from_json(self.facts_file.read_text())

    @property
    def status(self) -> str:
        """`done`, `training`, `cut off`, `stopped` or `failed`."""
        if self.facts.status == "running":
            return "training" if is_held(self.lock_file) else "cut off"
        return self.facts.status

    @cached_property
    def raw_config(self) -> Mapping[str, Any]:
        """`config.yaml` as plain containers, with the options of the version that wrote it."""
        with _reading(self.config_file):
            text = self.config_file.read_text()
            check_aliases(text)
            return _mapping(yaml.safe_load(text))

    @property
    def config(self) -> Config:
        """The configuration, checked.

        Raises:
            ConfigError: this version does not know an option.
        """
        return parse_config({**self.raw_config, "choices": self.facts.choices})

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """`metrics.json`: profile, and means and intervals for each split that was scored."""
        with _reading(self.metrics_file):
            return _mapping(json.loads(self.metrics_file.read_text()))

    @cached_property
    def cases(self) -> "pd.DataFrame":
        """`cases.csv`: a row per case, class and metric; an undefined `value` is NaN."""
        # A patient may be called 007 or NA: only an empty value is undefined.
        options = {"keep_default_na": False, "na_values": {"value": [""]}}
        types = {**dict.fromkeys(CASE_COLUMNS, str), "value": float}
        table = _read_table(self.cases_file, dtype=types, **options)
        if missing := [name for name in (*CASE_COLUMNS, "value") if name not in table]:
            raise DataError(
                f"{self.cases_file}: no column {', '.join(missing)}; train again with "
                "trainer.repeat=true"
            )
        return table

    @cached_property
    def history(self) -> "pd.DataFrame":
        """`history.csv`: a row per epoch; empty before the first one ends.

        A last line that was cut off is left out, with a warning.
        """
        import pandas as pd

        if not os.path.exists(self.history_file):
            return pd.DataFrame()
        with _reading(self.history_file):
            whole, _, cut = self.history_file.read_text().rpartition("\n")
            if cut:
                log.warning("%s: the last line is cut off and left out", self.history_file)
            table = pd.read_csv(io.StringIO(whole))
            if "epoch" not in table or table["epoch"].isna().any():
                raise ValueError("a row without an epoch")
            return table

    def history_rows(self) -> list[Mapping[str, float | str]]:
        """Return the history as a mapping per epoch; an undefined value is NaN."""
        names = [str(name) for name in self.history]
        rows = self.history.to_numpy(object)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @cached_property
    def split(self) -> "pd.DataFrame":
        """`split.csv`: patient, case, role and digest, all as text."""
        return _read_table(self.split_file, dtype=str, keep_default_na=False)

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

    def digest_results(self) -> dict[str, str]:
        """Return the SHA-256 of the scores, and of the options and the split behind them."""
        files = (self.config_file, self.split_file, self.cases_file, self.metrics_file)
        return {path.name: file_digest(path) for path in files}

    def option(self, key: str) -> object:
        """Return the name chosen in a group, or the value of a dotted key of the configuration.

        That of `conversion` is `converted` or `scratch`, as no two parents are the same.

        Raises:
            ConfigError: there is neither.
        """
        if key == "conversion":
            return "converted" if self.raw_config.get(key) else "scratch"
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
        """Return this folder if its run is finished and its plugins are there.

        Raises:
            ConfigError: it is no run folder, the run is not finished, or a plugin is missing.
        """
        try:
            facts, config = self.facts, self.raw_config
        except DataError as error:
            if self.config_file.exists() and self.facts_file.exists():
                raise ConfigError(str(error)) from error
            raise ConfigError(
                f"{self}: not a run folder; give one that holds config.yaml and run.json"
            ) from error
        if facts.status != "done":
            raise ConfigError(f"{self}: the run is {facts.status}, not done; train it first")
        self._check_plugins()
        for name in CONFIG_PARTS:
            if not isinstance(config.get(name), Mapping):
                raise ConfigError(
                    f"{self.config_file}: no {name} in it; restore it or train again with "
                    "trainer.repeat=true"
                )
        return self

    def _check_plugins(self) -> None:
        """Refuse the run if a plugin of it is missing; warn if its code is not that of the run."""
        here = list_plugins()
        for name, recorded in self.facts.plugins.items():
            if name not in here:
                raise ConfigError(f"{self}: {explain_absence(name, recorded)}")
            if here[name].digest != recorded.get("digest") and not self._warned:
                log.warning(
                    "%s: plugin %s has other code than when the run was trained%s; results may "
                    "differ",
                    self,
                    here[name],
                    f" (version {recorded['version']})" if "version" in recorded else "",
                )
        self._warned = True


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
    write_json(target.metrics_file, metrics)


def _mapping(node: object) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise ValueError("no keys in it")
    return node


def _read_table(path: Path, **options: Any) -> "pd.DataFrame":  # noqa: ANN401
    import pandas as pd  # Most commands that open runs read no table.

    with _reading(path):
        table: pd.DataFrame = pd.read_csv(path, **options)
        return table


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of a file that is missing or damaged into a `DataError`."""
    try:
        yield
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(
            f"{path}: cannot be read ({first_line(error)}); train again with trainer.repeat=true"
        ) from error
