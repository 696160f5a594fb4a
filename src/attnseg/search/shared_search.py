"""A search as each of its processes sees it: its options, folder, journal and locks."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from attnseg.config.training import Config
from attnseg.processes.lock import Lock
from attnseg.search.options import Search
from attnseg.search.space import make_pruner
from attnseg.training.callbacks.history import HistoryRow

Compose = Callable[[Sequence[str]], Config]


@dataclass(frozen=True)
class SharedSearch:
    """A search in its folder; `attnseg.search.search` describes the protocol.

    Attributes:
        base: configuration that the trials vary.
        compose: returns the configuration with further overrides.
        report_error: prints an error and returns its exit code.
    """

    options: Search
    base: Config
    folder: Path
    compose: Compose
    report_error: Callable[[Exception], int]

    def open_study(self) -> optuna.Study:
        """Open the journal, or create it."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self.folder / "journal.log"))),
                study_name=self.folder.name,
                direction="maximize" if self.maximize else "minimize",
                pruner=make_pruner(self.options),
                load_if_exists=True,
            )

    @property
    def monitor(self) -> str:
        """Name of the validation score that decides."""
        return self.base.trainer.monitor

    @property
    def maximize(self) -> bool:
        """Whether a larger score is better."""
        return self.monitor == "val/dice"

    def trial_lock(self, number: int) -> Lock:
        """Return the lock of the process that trains a trial."""
        return Lock(self.folder / f"trial-{number}.lock")

    @contextmanager
    def folder_lock(self) -> Iterator[None]:
        """Hold the folder's lock while the block decides which trial to take."""
        lock = Lock(self.folder / "lock")
        while lock.take() is not None:
            time.sleep(0.05)
        try:
            yield
        finally:
            lock.release()

    def best_score(self, rows: Sequence[HistoryRow]) -> float:
        """Return the best score in a run's history; NaN if no score is finite."""
        scores = [float(row[self.monitor]) for row in rows]
        finite = [score for score in scores if math.isfinite(score)]
        return (max if self.maximize else min)(finite, default=math.nan)
