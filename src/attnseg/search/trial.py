"""One trial of a search: taken from the journal, trained, and its outcome recorded.

`attnseg.search.search` describes the journal and the locks.
"""

import logging
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import TrialState

from attnseg.errors import ConfigError, DataError, InUseError, ResourceError
from attnseg.processes.lock import Lock
from attnseg.runs.run_folder import RunFolder
from attnseg.search.shared_search import SharedSearch
from attnseg.search.space import draw_parameters, format_value, make_sampler
from attnseg.training.callbacks.history import EndedEarly, HistoryRow
from attnseg.training.train import train

log = logging.getLogger(__name__)
# Faults of the machine or of the data would hit every other trial, too: they end the search.
FATAL_ERRORS = (DataError, ResourceError, OSError)
MAX_FAILURES = 3  # Attempts without progress, or first trials without success, that end it.


def run_trial(search: SharedSearch) -> int:
    """Take a trial, train it, and record its outcome; return 0 if the search may go on."""
    study = search.open_study()
    taken = take_trial(search, study)
    if taken is None:
        return 0
    trial, lock = taken
    record = partial(study.tell, trial.number, skip_if_finished=True)
    try:
        parameters = " ".join(trial_overrides(trial))
        log.info("== Trial %d of %d: %s", trial.number + 1, search.options.trials, parameters)
        if was_interrupted_in_vain(study, trial):
            trial.set_user_attr("reason", f"cut off {MAX_FAILURES} times in the same epoch")
            record(state=TrialState.FAIL)
            return code_if_all_failed(study, ResourceError.exit_code)
        score = search.best_score(train_trial(search, trial))
        if not math.isfinite(score):
            raise ConfigError(f"{search.monitor}: not finite after any epoch; narrow search.space")
        record(score)
        log.info("Trial %d: best %s %.4f", trial.number + 1, search.monitor, score)
    except EndedEarly as ended:
        log.info("Trial %d: %s", trial.number + 1, ended)
        record(state=TrialState.PRUNED)
    except FATAL_ERRORS as error:
        return search.report_error(error)  # The trial stays open and is taken up again later.
    except Exception as error:
        code = search.report_error(error)
        trial.set_user_attr("reason", str(error))
        record(state=TrialState.FAIL)
        return code_if_all_failed(study, code)
    finally:
        lock.release()
    return 0


def take_trial(search: SharedSearch, study: optuna.Study) -> tuple[optuna.Trial, Lock] | None:
    """Take up an interrupted trial or start a new one; `None` if there is none to take."""
    with search.folder_lock():
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                lock = search.trial_lock(trial.number)
                if lock.take() is None:
                    # Its holder may have recorded an outcome just before it released the lock.
                    if study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                        resumed = optuna.Trial(study, trial._trial_id)
                        return draw_parameters(search.options, resumed), lock
                    lock.release()
        if len(trials) >= search.options.trials:
            return None
        study.sampler = make_sampler(search.options, len(trials))
        new = study.ask()
        lock = search.trial_lock(new.number)
        lock.take()
        return draw_parameters(search.options, new), lock


def trial_overrides(trial: optuna.Trial | optuna.trial.FrozenTrial) -> list[str]:
    """Return a trial's parameters as overrides of the command line."""
    return [f"{key}={format_value(value)}" for key, value in trial.params.items()]


def was_interrupted_in_vain(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Note this attempt; return whether too many attempts have ended in the same epoch."""
    epochs_done = len(study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    attempts = [*trial.user_attrs.get("attempts", ()), epochs_done]
    trial.set_user_attr("attempts", attempts)
    return len(attempts) > MAX_FAILURES and len(set(attempts[-MAX_FAILURES - 1 :])) == 1


def train_trial(search: SharedSearch, trial: optuna.Trial) -> list[HistoryRow]:
    """Return the history of a trial's run, trained unless it already is.

    Raises:
        EndedEarly: the pruner ended the trial.
    """
    config = search.compose(trial_overrides(trial))

    def note_folder(folder: Path) -> None:
        trial.set_user_attr("run", str(folder.relative_to(config.paths.outputs)))

    def record_or_prune(rows: Sequence[HistoryRow]) -> None:
        record_curve(trial, rows, search.monitor)
        if len(rows) < config.trainer.max_epochs and trial.should_prune():
            raise EndedEarly(
                f"pruned after {len(rows)} of {config.trainer.max_epochs} epochs, behind the other "
                f"trials of {search.folder}"
            )

    while True:
        try:
            folder = train(config, note_folder, record_or_prune)
            break
        except InUseError as error:  # A trial with the same parameters may be training.
            log.info("Waiting: %s", str(error).partition(";")[0])
            time.sleep(5)
    rows = RunFolder(folder).history_rows()
    record_curve(trial, rows, search.monitor)
    return rows


def record_curve(trial: optuna.Trial, rows: Sequence[HistoryRow], monitor: str) -> None:
    """Add the epochs that the journal lacks to a trial's validation curve."""
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for row in rows:
        if (epoch := int(row["epoch"])) not in known:
            trial.report(float(row[monitor]), epoch)


def code_if_all_failed(study: optuna.Study, code: int) -> int:
    """Return the exit code if several trials have ended and all of them failed, else 0.

    One trial may fail for its parameters; if all do, the reason is elsewhere.
    """
    ended = [trial.state for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return code if len(ended) >= MAX_FAILURES and set(ended) == {TrialState.FAIL} else 0
