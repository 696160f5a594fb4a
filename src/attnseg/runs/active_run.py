"""A run in progress: the lock on its folder, and the files that it writes there."""

import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from attnseg.config.training import Config
from attnseg.energy import JOULES_PER_WH, EnergyMeter
from attnseg.errors import ConfigError, DataError, InUseError, ResourceError
from attnseg.files import remove_unfinished, write_text
from attnseg.plugins import find_used_plugins
from attnseg.processes.gpus import meter_of
from attnseg.processes.lock import Lock
from attnseg.runs.facts import Attempt, Energy, GitState, RunFacts
from attnseg.runs.resumption import check_resumption
from attnseg.runs.run_folder import RunFolder

log = logging.getLogger(__name__)
PACKAGES = ("attnseg", "torch", "pytorch-lightning", "monai", "albumentations", "numpy", "scipy")


class ActiveRun:
    """A run that this process works on: it holds the folder's lock and writes its files.

    The folder follows from what is run. If it is there already, its run is either done, and nothing
    is done again, or was cut off, and goes on from its last checkpoint.

    Args:
        config: of the run; kept in the folder.
        identity: from `run_id`.

    Raises:
        ConfigError: it has failed too often, or packages or devices changed since it stopped.
        ResourceError: the folder cannot be made.
        InUseError: another process works on it.
    """

    def __init__(self, config: Config, identity: str) -> None:
        choices = config.choices
        parent = Path(config.paths.outputs, config.dataset_name, choices["model"], choices["attn"])
        try:
            parent.mkdir(parents=True, exist_ok=True)
            repeat = config.trainer.repeat
            self.folder = RunFolder(_new_folder(parent, identity) if repeat else parent / identity)
            self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
            self.folder.previews.mkdir(exist_ok=True)
            self.lock = Lock(self.folder.lock_file)
            holder = self.lock.take()
        except OSError as error:
            raise ResourceError(
                f"{parent}: cannot be written ({error.strerror}); set paths.outputs"
            ) from error
        if holder is not None:
            raise InUseError(f"{self.folder}: {holder} is training this; wait for it or stop it")
        self.started = time.monotonic()
        try:
            before = RunFolder(self.folder).facts
        except DataError:  # A new run, or one whose facts were lost.
            before = RunFacts(status="new")
        self.facts, self.finished = before, before.status == "done"  # by `run.json`
        if self.finished:
            self.lock.release()
            return
        versions, git = {name: version(name) for name in PACKAGES}, read_git_state()
        try:
            self._check_attempts(before.attempts, config.trainer.attempts)
            if self.folder.last_checkpoint.exists():
                check_resumption(self.folder, before, config, versions, git)
        except ConfigError:
            self.lock.release()
            raise
        remove_unfinished(self.folder.path)
        write_text(self.folder.config_file, config.to_yaml())
        used = find_used_plugins(config.model_dump(by_alias=True, exclude={"choices"}))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.facts = RunFacts(
            id=identity,
            status="running",
            started=before.started or now,
            attempts=[*before.attempts, {"started": now, "status": "cut off"}],
            command=sys.argv,
            choices=choices,
            plugins={name: plugin.describe() for name, plugin in used.items()},
            seed=config.seed,
            git=git,
            versions=versions,
            machine={
                **before.machine,
                "python": platform.python_version(),
                "system": platform.platform(terse=True),
                "threads": torch.get_num_threads(),
            },
            seconds=dict(before.seconds),
            energy=before.energy,
        )
        self._config, self.spent = config, self.facts.seconds.get("total", 0.0)
        self.save()

    def note_device(self, config: Config) -> None:
        """Note the name of the device, and warn if a resumed run had another one before.

        This wakes a GPU up, so call it only once it is leased.
        """
        name = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        on_gpu = config.trainer.accelerator == "gpu"
        device = torch.cuda.get_device_name() if on_gpu else name
        before = self.facts.machine.get("device", device)
        if before != device and self.folder.last_checkpoint.exists():
            log.warning(
                "%s: goes on, and results could differ: device %s, now %s",
                self.folder, before, device,
            )  # fmt: skip
        self.facts.machine["device"] = device
        self.save()

    def _check_attempts(self, attempts: list[Attempt], most: int) -> None:
        failures = [attempt for attempt in attempts if attempt.get("status") == "failed"]
        if len(failures) >= most:
            raise ConfigError(
                f"{self.folder}: failed {len(failures)} times, at last with "
                f"{failures[-1].get('reason')}; mend it and raise trainer.attempts or delete the "
                "folder"
            )

    def end(self, status: str, reason: str | None = None) -> None:
        """Note how this attempt ended, and give the folder back."""
        self.facts.attempts[-1]["status"] = self.facts.status = status
        if reason:
            self.facts.attempts[-1]["reason"] = self.facts.reason = reason
        self.save()
        self.lock.release()

    def save(self, **facts: object) -> None:
        """Add facts to `run.json`; their names are those of `RunFacts`."""
        for name, value in facts.items():
            setattr(self.facts, name, value)
        total = self.spent + time.monotonic() - self.started
        self.facts.seconds["total"] = round(total, 2)
        write_text(self.folder.facts_file, self.facts.to_json())

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Note in `run.json` how long the block took and its energy, over all attempts."""
        started = time.monotonic()
        meter = meter_of(self._config)
        try:
            with meter:
                yield
        finally:
            spent = self.facts.seconds.get(phase, 0.0) + time.monotonic() - started
            self.facts.seconds[phase] = round(spent, 2)
            self._add_energy(phase, meter)

    def _add_energy(self, phase: str, meter: EnergyMeter) -> None:
        facts: dict[str, Any] = {**self.facts.energy}
        before, joules = facts.get(f"{phase}_joules", 0.0), meter.joules
        facts |= {"source": meter.source, "reason": meter.reason}
        if any(attempt["status"] == "cut off" for attempt in self.facts.attempts[:-1]):
            before, facts["reason"] = None, "an attempt was cut off before it noted its energy"
        known = before is not None and joules is not None
        facts[f"{phase}_joules"] = round(before + joules, 3) if known else None
        self.facts.energy = cast("Energy", facts)

    def note_energy_per_step(self) -> None:
        """Note the energy of the whole run, of a step and of an image, once it has been scored."""
        facts, config, history = self.facts.energy, self._config, self.folder.history
        phases = [facts.get("fit_joules", 0.0), facts.get("evaluate_joules")]
        joules = [phase for phase in phases if phase is not None]
        facts["wh"] = round(sum(joules) / JOULES_PER_WH, 4) if len(joules) == len(phases) else None
        steps = int(history["step"].iloc[-1]) if len(history) else 0
        per_step = phases[0] / steps if phases[0] is not None and steps else None
        images = config.dataset.batch_size * config.trainer.accumulate * config.trainer.devices
        facts["joules_per_step"] = per_step
        facts["joules_per_image"] = None if per_step is None else per_step / images
        factor = config.trainer.co2_g_per_kwh
        if factor is not None and facts["wh"] is not None:
            facts["g_per_kwh"], facts["co2_g"] = factor, round(facts["wh"] / 1000 * factor, 3)
        if facts["wh"] is not None:
            log.info("Energy: %.3g Wh (%s)", facts["wh"], facts["source"])
        self.save()

    def log_to_file(self) -> logging.Handler:
        """Send all messages of the package to `run.log`, too; return the handler to remove."""
        handler = logging.FileHandler(self.folder.log_file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("attnseg").addHandler(handler)
        return handler


def _new_folder(parent: Path, identity: str) -> Path:
    """Make the folder of a repeated run, with the first number that is free."""
    folder, number = parent / identity, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = parent / f"{identity}-{number}"


def read_git_state(folder: Path = Path(__file__).parent) -> GitState | None:
    """Return the commit of the code in a folder, or `None` if git tracks none of it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None
