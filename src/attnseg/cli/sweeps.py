"""Sweeps: every job in a process of its own, its state in a ledger, and a table at the end."""

import hashlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from attnseg.config.errors import parse_options
from attnseg.config.training import Study
from attnseg.errors import InUseError, ResourceError, first_line
from attnseg.processes.fork import run_in_child
from attnseg.runs.status import job_state, print_states
from attnseg.runs.sweep_jobs import Ledger

OnFolder = Callable[[Path], None]  # called with the run folder as soon as there is one
log = logging.getLogger("attnseg")


class Sweep(Callback):
    """Opens the ledger when Hydra starts a sweep, also in the processes of a launcher.

    Attributes:
        current: ledger of the sweep that this process works on.
        study: compares the runs in some folders, if the sweep asks for a comparison.
    """

    current: Ledger | None = None
    study: Callable[[list[str]], None] | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401
        """Note which jobs there will be."""
        self.jobs = jobs_of(config)
        digest = hashlib.sha256(json.dumps(sorted(map(sorted, self.jobs))).encode()).hexdigest()
        self.folder = Path(config.hydra.sweep.dir, digest[:10])
        Sweep.current = Ledger(self.folder)
        if study := config.get("compare"):
            name = config.hydra.runtime.choices.get("sweep") or digest[:10]
            outputs = Path(config.paths.outputs, "comparisons", name)
            Sweep.study = partial(_compare, OmegaConf.to_container(study), outputs)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401
        """Open the ledger: all jobs could be composed."""
        if hasattr(self, "folder"):  # This is a sweep, not a single run.
            Sweep.current = Ledger(self.folder)
            Sweep.current.open(self.jobs)


def jobs_of(config: DictConfig) -> list[list[str]]:
    """Return the overrides of every job of a sweep, as Hydra will make them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # It has no public name.

    axes = config.hydra.sweeper.get("params") or {}
    overrides = [*(f"{key}={values}" for key, values in axes.items()), *config.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(overrides)
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return jobs


def run_job(perform: Callable[[OnFolder], None], report: Callable[[Exception], int]) -> int:
    """Run the job that Hydra composed in a child process, note its state, return its exit code.

    Args:
        perform: does the work; takes a function to call with the run folder.
        report: prints an error and returns its exit code.
    """
    settings = HydraConfig.get()
    number, started = int(settings.job.num), time.monotonic()
    ledger = Sweep.current

    def note(status: str, **facts: object) -> None:
        if ledger is not None:
            seconds = round(time.monotonic() - started, 1)
            ledger.note(number, status=status, seconds=seconds, **facts)

    def child() -> int:
        try:
            perform(lambda folder: note("running", folder=folder, reason=""))
        except InUseError as error:  # The process that works on it notes its state.
            return report(error)
        except Exception as error:
            code = report(error)
            note("failed", reason=first_line(error), code=code)
            return code
        except BaseException:
            note("stopped")
            raise
        note("done", reason="", code=0)
        return 0

    log.info("== Job %d: %s", number, settings.job.override_dirname)
    code = run_in_child(child)
    if code >= 0:
        return code
    reason = f"killed by {signal.Signals(-code).name}"
    code = report(ResourceError(f"job {number}: {reason}; run the command again to go on"))
    note("killed", reason=reason, code=code)
    return code


def close() -> int:
    """Print the states of the sweep's jobs, if this was a sweep; compare them if all are done.

    Returns:
        The largest exit code; 5 if a job has not ended, here or in another process.
    """
    if Sweep.current is None or not (jobs := Sweep.current.jobs()):
        return 0
    same = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    states = [job_state(job, same) for job in jobs]
    sys.stdout.flush()
    print_states(states)
    missing = [job for job, state in zip(jobs, states, strict=True) if state.status != "done"]
    if missing:
        print(f"{len(missing)} of {len(jobs)} jobs are missing; the same command goes on")
    elif Sweep.study is not None:
        Sweep.study([str(job.folder) for job in jobs])
    return max((job.code or ResourceError.exit_code for job in missing), default=0)


def _compare(settings: Any, outputs: Path, runs: list[str]) -> None:  # noqa: ANN401
    """Compare runs as configured."""
    study = parse_options(Study, settings)
    from attnseg.study.compare import compare_study  # imports pandas and matplotlib

    compare_study(runs, study, outputs)
