"""Search of options by trials, each of them a run; several processes may share one search.

The trials are in a journal (Optuna's), their trainings in run folders. Whoever is killed loses
nothing: a trial that nobody works on is taken up again, with the same parameters, and its run goes
on from its last checkpoint. Validation decides; the test set stays sealed.
"""

import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from attnseg.config.identity import identity_of, short_digest
from attnseg.config.training import Config
from attnseg.errors import ConfigError, DataError, InUseError, ResourceError
from attnseg.files import write_text
from attnseg.processes.fork import run_in_child
from attnseg.processes.lock import Lock, is_held
from attnseg.runs.run_folder import RunFolder
from attnseg.search import report as search_report
from attnseg.search.options import Choices, Search
from attnseg.training.callbacks.history import EndedEarly, HistoryRow
from attnseg.training.train import train

log = logging.getLogger(__name__)
# What is a fault of the machine or of the data would be every other trial's, too.
OURS_TO_STOP = (DataError, ResourceError, OSError)
FRUITLESS = 3  # attempts or trials in a row without anything to show, before it is given up

Compose = Callable[[Sequence[str]], Config]
Report = Callable[[Exception], int]


@dataclass(frozen=True)
class Search:
    """A search, as every process that works on it sees it.

    Attributes:
        options: of the search.
        base: the configuration that the trials vary.
        folder: of the journal and the report.
        compose: returns the configuration with some keys overridden.
        report: prints an error and returns its exit code.
    """

    options: Search
    base: Config
    folder: Path
    compose: Compose
    report: Report

    def study(self) -> optuna.Study:
        """Open the journal, or begin it."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self.folder / "journal.log"))),
                study_name=self.folder.name,
                direction="maximize" if self.up else "minimize",
                pruner=pruner(self.options),
                load_if_exists=True,
            )

    @property
    def monitor(self) -> str:
        """The value of the validation that decides."""
        return self.base.trainer.monitor

    @property
    def up(self) -> bool:
        """Whether more of it is better."""
        return self.monitor == "val/dice"

    def lock(self, number: int) -> Lock:
        """Return the lock that whoever works on a trial holds."""
        return Lock(self.folder / f"trial-{number}.lock")

    def best(self, rows: Sequence[HistoryRow]) -> float:
        """Return the best monitor of a run's history; NaN if there is none."""
        values = [_value(row[self.monitor]) for row in rows]
        finite = [value for value in values if math.isfinite(value)]
        return (max if self.up else min)(finite, default=math.nan)


def search(options: Search, compose: Compose, words: Sequence[str], report: Report) -> int:
    """Work on a search until all its trials are done or in other processes' hands; report.

    Args:
        options: of the search.
        compose: returns the configuration of the command line with some keys overridden.
        words: the command line's own overrides.
        report: prints an error and returns its exit code.

    Returns:
        The exit code.

    Raises:
        AttnsegError: the space or the configuration is wrong, or there is nothing to report.
    """
    given = {word.lstrip("+~").partition("=")[0] for word in words}
    for key in options.space or {}:
        if key in given:
            raise ConfigError(f"{key}: set, and in search.space; leave it out of one of them")
    base = compose(())
    check(options, base, compose)
    identity = search_id(options, base)
    folder = Path(base.paths.outputs, "searches", options.name or identity)
    if options.report and not (folder / "journal.log").is_file():
        raise DataError(f"{folder}: no search here; leave search.report out to begin it")
    folder.mkdir(parents=True, exist_ok=True)
    found = Search(options, base, folder, compose, report)
    with _alone(folder):
        study = found.study()
        before = study.user_attrs.setdefault("identity", identity)
        if before != identity:
            raise ConfigError(
                f"search.name: {folder} holds a search of another configuration or space; "
                "choose another name"
            )
        study.set_user_attr("identity", identity)
        write_text(folder / "search.yaml", base.to_yaml())
    code = 0
    if not options.report:
        log.info("Search: %s, %d trials", folder, options.trials)
        code = work(found, study)
    done = search_report.report(
        study, folder, base.choices, list(options.space or {}), found.monitor, words
    )
    if code == 0 and not options.report and (left := options.trials - done) > 0:
        log.info("%d of %d trials are in other processes' hands", left, options.trials)
    return code


def check(options: Search, base: Config, compose: Compose) -> None:
    """Refuse a search that could not work; compose the ends of every range and every choice.

    Raises:
        ConfigError: names the key.
    """
    if base.trainer.max_epochs == 0:
        raise ConfigError("trainer.max_epochs: 0; a search needs at least one epoch")
    if base.trainer.devices > 1:
        raise ConfigError("trainer.devices: a trial takes one; start the command once per device")
    if base.trainer.repeat:
        raise ConfigError("trainer.repeat: a trial that was cut off must go on; leave it false")
    if base.dataset.split.watch_test:
        raise ConfigError("dataset.split.watch_test: a search must not see the test set; leave it")
    for key, node in (options.space or {}).items():
        ends = node.choices if isinstance(node, Choices) else (node.low, node.high)
        for value in ends:
            compose([f"{key}={word(value)}"])


def search_id(options: Search, base: Config) -> str:
    """Return ten hexadecimal digits of the configuration, its dataset and the space."""
    space = {key: node.model_dump() for key, node in sorted((options.space or {}).items())}
    dataset = base.dataset.model_dump(mode="json", include={"root", "phantom"})
    return short_digest([identity_of(base), dataset, base.dataset.split.file, space])


def work(found: Search, study: optuna.Study) -> int:
    """Do trials, each in a process of its own, while there is one to do.

    Returns:
        The exit code: of the trial that ended the search, or 0.
    """
    while is_there_work(found, study):
        code = run_in_child(partial(one_trial, found))
        if code < 0:
            log.warning("The trial's process was killed by signal %d; it goes on", -code)
        elif code > 0:
            return code
    return 0


def is_there_work(found: Search, study: optuna.Study) -> bool:
    """Return whether a trial is left to begin, or to take up again."""
    trials = study.get_trials(deepcopy=False)
    cut_off = (
        trial
        for trial in trials
        if trial.state == TrialState.RUNNING and not is_held(found.lock(trial.number).path)
    )
    return len(trials) < found.options.trials or any(cut_off)


def one_trial(found: Search) -> int:
    """Claim a trial, train it, and tell how it went.

    Returns:
        The exit code: 0 if the search may go on.
    """
    study = found.study()
    claimed = claim(found, study)
    if claimed is None:
        return 0
    trial, lock = claimed
    tell = partial(study.tell, trial.number, skip_if_finished=True)
    try:
        log.info(
            "== Trial %d of %d: %s",
            trial.number + 1,
            found.options.trials,
            " ".join(f"{key}={word(value)}" for key, value in trial.params.items()),
        )
        attempts = [*trial.user_attrs.get("attempts", ()), epochs_done(study, trial.number)]
        trial.set_user_attr("attempts", attempts)
        if len(attempts) > FRUITLESS and len(set(attempts[-FRUITLESS - 1 :])) == 1:
            trial.set_user_attr("reason", f"cut off {FRUITLESS} times in the same epoch")
            tell(state=TrialState.FAIL)
            return stopped(study, ResourceError.exit_code)
        value = found.best(history(found, trial))
        if not math.isfinite(value):
            raise ConfigError(f"{found.monitor}: not finite after any epoch; narrow search.space")
        tell(value)
        log.info("Trial %d: best %s %.4f", trial.number + 1, found.monitor, value)
    except EndedEarly as ended:
        log.info("Trial %d: %s", trial.number + 1, ended)
        tell(state=TrialState.PRUNED)
    except OURS_TO_STOP as error:
        return found.report(error)  # it stays open, to be taken up when that is mended
    except Exception as error:
        code = found.report(error)
        trial.set_user_attr("reason", str(error))
        tell(state=TrialState.FAIL)
        return stopped(study, code)
    finally:
        lock.release()
    return 0


def claim(found: Search, study: optuna.Study) -> tuple[optuna.Trial, Lock] | None:
    """Take up a trial that was cut off, or begin a new one; `None` if there is none to be had."""
    with _alone(found.folder):
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                lock = found.lock(trial.number)
                if lock.take() is None:
                    # Whoever held it until now told the journal before.
                    if study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                        return drawn(found, optuna.Trial(study, trial._trial_id)), lock
                    lock.release()
        if len(trials) >= found.options.trials:
            return None
        # By its number: neither kills nor other processes change what a trial is drawn from.
        study.sampler = sampler(found.options, len(trials))
        new = study.ask()
        lock = found.lock(new.number)
        lock.take()
        return drawn(found, new), lock


def drawn(found: Search, trial: optuna.Trial) -> optuna.Trial:
    """Draw a trial's parameters; those that were drawn before stay."""
    for key, node in (found.options.space or {}).items():
        if isinstance(node, Choices):
            trial.suggest_categorical(key, node.choices)
        elif isinstance(node.low, int) and isinstance(node.high, int):
            step = 1 if node.step is None else int(node.step)
            trial.suggest_int(key, node.low, node.high, step=step, log=node.log)
        else:
            trial.suggest_float(key, node.low, node.high, step=node.step, log=node.log)
    return trial


def history(found: Search, trial: optuna.Trial) -> list[HistoryRow]:
    """Train a trial's run, or find it trained; tell the journal its validation curve.

    Raises:
        EndedEarly: the run is not worth its remaining epochs.
        AttnsegError: as `train`.
    """
    config = found.compose([f"{key}={word(value)}" for key, value in trial.params.items()])

    def note(folder: Path) -> None:
        trial.set_user_attr("run", str(folder.relative_to(config.paths.outputs)))

    def watch(rows: Sequence[HistoryRow]) -> None:
        tell_curve(trial, rows, found.monitor)
        if len(rows) < config.trainer.max_epochs and trial.should_prune():
            raise EndedEarly(
                f"pruned after {len(rows)} of {config.trainer.max_epochs} epochs, behind the other "
                f"trials of {found.folder}"
            )

    while True:
        try:
            folder = train(config, note, watch)
            break
        except InUseError as error:  # another trial with these parameters, or one that is ending
            log.info("Waiting: %s", str(error).partition(";")[0])
            time.sleep(5)
    rows = RunFolder(folder).history_rows()
    tell_curve(trial, rows, found.monitor)
    return rows


def tell_curve(trial: optuna.Trial, rows: Sequence[HistoryRow], monitor: str) -> None:
    """Tell the journal what it does not know yet of a run's validation curve."""
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for row in rows:
        if (epoch := int(row["epoch"])) not in known:
            trial.report(_value(row[monitor]), epoch)


def _value(cell: float | str) -> float:
    """Return a cell of a history; what is undefined is empty there."""
    return math.nan if cell == "" else float(cell)


def epochs_done(study: optuna.Study, number: int) -> int:
    """Return how many epochs of a trial the journal knows."""
    return len(study.get_trials(deepcopy=False)[number].intermediate_values)


def stopped(study: optuna.Study, code: int) -> int:
    """Return a failed trial's exit code if no trial has succeeded and several have failed, else 0.

    A trial may fail for what it has drawn; all of them do for another reason.
    """
    ended = [trial.state for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return code if len(ended) >= FRUITLESS and set(ended) == {TrialState.FAIL} else 0


def sampler(options: Search, number: int) -> optuna.samplers.BaseSampler:
    """Return what draws the parameters of a trial."""
    digest = hashlib.sha256(f"{options.seed}:{number}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    if options.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(n_startup_trials=options.startup, seed=seed)


def pruner(options: Search) -> optuna.pruners.BasePruner:
    """Return what decides which trials are not worth their remaining epochs."""
    if options.pruner == "median":
        return optuna.pruners.MedianPruner(options.startup, options.warmup + 1)
    if options.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=options.warmup + 1, bootstrap_count=options.startup
        )
    return optuna.pruners.NopPruner()


def word(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, str):
        return value if value.replace("_", "").isalnum() else f"'{value}'"
    return json.dumps(value)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time decide who does what."""
    lock = Lock(folder / "lock")
    while lock.take() is not None:
        time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()
