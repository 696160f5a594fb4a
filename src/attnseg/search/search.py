"""Searches hyperparameters: runs many trials, each a training run, in any number of processes.

`run_search` checks the space, creates the study in the search's folder or joins the one that is
there, and forks one trial after another until none is left. `trial.py` takes, trains and records
one trial; `shared_search.py` holds the locks. The processes share only the folder:

- *Journal.* `journal.log` is Optuna's record of trials: their parameters, validation curves and
  outcomes. Only one search may use a folder; its identity is stored in the journal.
- *Folder lock.* `lock` is held while a process reads the journal and decides which trial to take,
  for milliseconds, so that two processes never take the same one.
- *Trial locks.* `trial-N.lock` is held by the process that trains trial N, until the journal has
  its outcome. A trial that is running according to the journal, but whose lock nobody holds, was
  interrupted: the next process resumes it with the same parameters, from its last checkpoint.
- *Forks.* Each trial trains in a fork. If the fork is killed, its parent goes on and resumes the
  trial; a trial that is cut off in the same epoch too often is recorded as failed. If the parent is
  killed, repeating the command continues the search.
- *Reproducibility.* The sampler of a trial is seeded from the search's seed and the trial's number,
  so that neither interruptions nor the number of processes change these seeds.

Validation scores decide; the test set stays closed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import TrialState

from attnseg.config.identity import identity_of, short_digest
from attnseg.config.training import Config
from attnseg.errors import ConfigError, DataError
from attnseg.files import write_text
from attnseg.processes.fork import run_in_child
from attnseg.processes.lock import is_held
from attnseg.progress import format_seconds
from attnseg.search.options import Choices, Search
from attnseg.search.report import write_report
from attnseg.search.shared_search import Compose, SharedSearch
from attnseg.search.space import format_value
from attnseg.search.trial import run_trial

log = logging.getLogger(__name__)


def run_search(
    options: Search,
    compose: Compose,
    overrides: Sequence[str],
    report_error: Callable[[Exception], int],
) -> int:
    """Run trials until none is left for this process, write the report, return the exit code.

    `overrides` are those of the command line. `compose` builds a configuration from them and from
    further overrides. `report_error` prints an error and returns its exit code.
    """
    return continue_search(open_search(options, compose, overrides, report_error), overrides)


def open_search(
    options: Search,
    compose: Compose,
    overrides: Sequence[str],
    report_error: Callable[[Exception], int],
) -> SharedSearch:
    """Return a search whose space is checked, in its folder; see `run_search`."""
    overridden = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for key in options.space:
        if key in overridden:
            raise ConfigError(f"{key}: set, and in search.space; leave it out of one of them")
    base = compose(())
    check_search_space(options, base, compose)
    folder = Path(base.paths.outputs, "searches", options.name or search_identity(options, base))
    if options.report and not (folder / "journal.log").is_file():
        raise DataError(f"{folder}: no search here; leave search.report out to begin it")
    folder.mkdir(parents=True, exist_ok=True)
    return SharedSearch(options, base, folder, compose, report_error)


def continue_search(search: SharedSearch, overrides: Sequence[str]) -> int:
    """Run the trials that are left for this process, write the report, return the exit code."""
    options = search.options
    study = join_search(search, search_identity(options, search.base))
    code = 0
    if not options.report:
        log.info("Search: %s, %d trials", search.folder, options.trials)
        code = run_trials(search, study)
    ended = write_report(search, study, overrides)
    if code == 0 and not options.report and (left := options.trials - ended) > 0:
        log.info("%d of %d trials are still running in other processes", left, options.trials)
    return code


def check_search_space(options: Search, base: Config, compose: Compose) -> None:
    """Refuse a search that cannot work; compose both ends of every range and every choice."""
    if base.trainer.max_epochs == 0:
        raise ConfigError("trainer.max_epochs: 0; a search needs at least one epoch")
    if base.trainer.devices > 1:
        raise ConfigError("trainer.devices: a trial takes one; start the command once per device")
    if base.trainer.repeat:
        raise ConfigError("trainer.repeat: a trial that was cut off must go on; leave it false")
    if base.dataset.split.watch_test:
        raise ConfigError("dataset.split.watch_test: a search must not see the test set; leave it")
    for key, node in options.space.items():
        values = node.choices if isinstance(node, Choices) else (node.low, node.high)
        for value in values:
            compose([f"{key}={format_value(value)}"])


def search_identity(options: Search, base: Config) -> str:
    """Return ten hexadecimal digits of the configuration, its dataset and the space."""
    space = {key: node.model_dump() for key, node in sorted(options.space.items())}
    dataset = base.dataset.model_dump(mode="json", include={"root", "phantom"})
    return short_digest([identity_of(base), dataset, base.dataset.split.file, space])


def join_search(search: SharedSearch, identity: str) -> optuna.Study:
    """Create the search in its folder, or join the one that is there if it is the same."""
    with search.folder_lock():
        study = search.open_study()
        if study.user_attrs.get("identity", identity) != identity:
            raise ConfigError(
                f"search.name: {search.folder} holds a search of another configuration or space; "
                "choose another name"
            )
        study.set_user_attr("identity", identity)
        write_text(search.folder / "search.yaml", search.base.to_yaml())
    return study


def run_trials(search: SharedSearch, study: optuna.Study) -> int:
    """Run trials in forks until none is left or one ends in an error; return its exit code or 0."""
    trials, started, before = search.options.trials, time.monotonic(), count_ended(study)
    while has_trial_to_run(search, study):
        code = run_in_child(partial(run_trial, search))
        if 0 < (ended := count_ended(study)) - before and ended < trials:
            left = (time.monotonic() - started) / (ended - before) * (trials - ended)
            log.info("%d of %d trials done, %s left", ended, trials, format_seconds(left))
        if code < 0:
            log.warning("The trial's process was killed by signal %d; the search continues", -code)
        elif code > 0:
            return code
    return 0


def count_ended(study: optuna.Study) -> int:
    """Return the number of trials that have ended, in all processes."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def has_trial_to_run(search: SharedSearch, study: optuna.Study) -> bool:
    """Return whether a trial is left to start, or an interrupted one to resume.

    Another process may take it first: `run_trial` decides, under the folder lock.
    """
    trials = study.get_trials(deepcopy=False)
    return len(trials) < search.options.trials or any(
        trial.state == TrialState.RUNNING and not is_held(search.trial_lock(trial.number).path)
        for trial in trials
    )
