"""Run folders: where one training leaves everything that later commands need."""

import json
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
from typing import Any

import torch

from attnseg.config.schema import Config
from attnseg.errors import ConfigError, InUseError, ResourceError
from attnseg.files import remove_unfinished, write_text
from attnseg.processes.lock import Lock

PACKAGES = ("attnseg", "torch", "pytorch-lightning", "monai", "albumentations", "numpy", "scipy")


class Run:
    """A run folder, locked, and its `run.json`.

    The folder follows from what is run. If it is there already, its run is either done, and nothing
    will be done again, or was cut off, and goes on where its last checkpoint is.

    Args:
        config: of the run.
        identity: from `run_id`.

    Attributes:
        folder: the run folder.
        finished: whether the run was done before.

    Raises:
        ConfigError: the run has failed too often.
        ResourceError: the folder cannot be made.
        InUseError: another process works on it.
    """

    def __init__(self, config: Config, identity: str) -> None:
        choices = config.choices
        parent = Path(config.paths.outputs, config.dataset_name, choices["model"], choices["attn"])
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.folder = (
                _new_folder(parent, identity) if config.trainer.repeat else parent / identity
            )
            for part in ("checkpoints", "previews"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            self.lock = Lock(self.folder / "lock")
            holder = self.lock.take()
        except OSError as error:
            raise ResourceError(
                f"{parent}: cannot be written ({error.strerror}); set paths.outputs"
            ) from error
        if holder is not None:
            raise InUseError(f"{self.folder}: {holder} is training this; wait for it or stop it")
        self.started = time.monotonic()
        before = self.facts = self._read()
        self.finished = before.get("status") == "done"
        if self.finished:
            self.lock.release()
            return
        attempts = before.get("attempts", [])
        self._check_attempts(attempts, config.trainer.attempts)
        remove_unfinished(self.folder)
        write_text(self.folder / "config.yaml", config.to_yaml())
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.facts = {
            "id": identity,
            "status": "running",
            "started": before.get("started", now),
            "attempts": [*attempts, {"started": now, "status": "cut off"}],
            "command": sys.argv,
            "choices": choices,
            "seed": config.seed,
            "git": git_state(),
            "versions": {name: version(name) for name in PACKAGES},
            "machine": {
                "python": platform.python_version(),
                "system": platform.platform(terse=True),
                "threads": torch.get_num_threads(),
            },
            "seconds": before.get("seconds", {}),
        }
        self.spent = self.facts["seconds"].get("total", 0.0)
        self.save()

    def note_device(self, config: Config) -> None:
        """Note the name of what is trained on; wakes the GPU up, so only once it is ours."""
        self.facts["machine"]["device"] = _device(config)
        self.save()

    def _read(self) -> dict[str, Any]:
        """Return what an earlier attempt left in `run.json`."""
        try:
            facts: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        except (OSError, ValueError):
            return {}
        return facts

    def _check_attempts(self, attempts: list[dict[str, str]], most: int) -> None:
        failures = [attempt for attempt in attempts if attempt["status"] == "failed"]
        if len(failures) >= most:
            self.lock.release()
            raise ConfigError(
                f"{self.folder}: failed {len(failures)} times, at last with "
                f"{failures[-1]['reason']}; mend it and raise trainer.attempts or delete the folder"
            )

    def end(self, status: str, reason: str | None = None) -> None:
        """Note how this attempt ended, and give the folder back."""
        self.facts["attempts"][-1] |= {"status": status} | ({"reason": reason} if reason else {})
        self.facts.pop("reason", None)
        self.save(status=status, **({"reason": reason} if reason else {}))
        self.lock.release()

    def save(self, **facts: object) -> None:
        """Add facts to `run.json`."""
        self.facts.update(facts)
        total = self.spent + time.monotonic() - self.started
        self.facts["seconds"]["total"] = round(total, 2)
        write_text(self.folder / "run.json", json.dumps(self.facts, indent=1) + "\n")

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Note in `run.json` how many seconds the block took."""
        started = time.monotonic()
        yield
        spent = self.facts["seconds"].get(what, 0.0) + time.monotonic() - started
        self.facts["seconds"][what] = round(spent, 2)

    def log_to_file(self) -> logging.Handler:
        """Send all messages of the package to `run.log`, too; return the handler to remove."""
        handler = logging.FileHandler(self.folder / "run.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("attnseg").addHandler(handler)
        return handler


def _new_folder(parent: Path, identity: str) -> Path:
    number = 1
    while True:
        folder = parent / (identity if number == 1 else f"{identity}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


def _device(config: Config) -> str:
    if config.trainer.accelerator == "gpu":
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def git_state() -> dict[str, str | bool] | None:
    """Return commit and whether the tree differs from it; `None` if the code is not in a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is somebody else's clone
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None
