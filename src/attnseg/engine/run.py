"""Run folders: where one training leaves everything that later commands need."""

import hashlib
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

from attnseg.engine.files import file_digest, write_text
from attnseg.engine.schema import Config
from attnseg.errors import ResourceError

PACKAGES = ("attnseg", "torch", "pytorch-lightning", "monai", "albumentations", "numpy", "scipy")
# Where and on what a run happens does not make it another run; the phantom is in the data digest.
PLACES = {
    "paths": None,
    "phantom_size": None,
    "trainer": ("accelerator", "devices", "strategy", "num_workers"),
}


def run_id(config: Config, data_digest: str, split_digest: str) -> str:
    """Return ten hexadecimal digits of configuration (less places and devices), data and split."""
    described = config.model_dump(by_alias=True)
    described["dataset"].pop("root")
    if weights := described["model"]["pretrained"]:
        described["model"]["pretrained"] = file_digest(Path(weights))
    for part, keys in PLACES.items():
        if keys is None:
            described.pop(part)
        for key in keys or ():
            described[part].pop(key)
    text = json.dumps([described, data_digest, split_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class Run:
    """A run folder and its `run.json`.

    A folder is never written twice: training the same again goes to `<run id>-2`, `-3` and so on.

    Args:
        config: of the run.
        text: the configuration as YAML, to be kept in the folder.
        identity: from `run_id`.

    Raises:
        ResourceError: the folder cannot be made.
    """

    def __init__(self, config: Config, text: str, identity: str) -> None:
        choices = config.choices
        parent = Path(config.paths.outputs, choices["dataset"], choices["model"], choices["attn"])
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.folder = _new_folder(parent, identity)
            (self.folder / "checkpoints").mkdir()
            (self.folder / "previews").mkdir()
            write_text(self.folder / "config.yaml", text)
        except OSError as error:
            raise ResourceError(
                f"{parent}: cannot be written ({error.strerror}); set paths.outputs"
            ) from error
        self.started = time.monotonic()
        self.facts: dict[str, Any] = {
            "id": identity,
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "choices": choices,
            "seed": config.seed,
            "git": git_state(),
            "versions": {name: version(name) for name in PACKAGES},
            "machine": {
                "python": platform.python_version(),
                "system": platform.platform(terse=True),
                "device": _device(config),
                "threads": torch.get_num_threads(),
            },
            "seconds": {},
        }
        self.save()

    def save(self, **facts: object) -> None:
        """Add facts to `run.json`."""
        self.facts.update(facts)
        self.facts["seconds"]["total"] = round(time.monotonic() - self.started, 2)
        write_text(self.folder / "run.json", json.dumps(self.facts, indent=1) + "\n")

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Note in `run.json` how many seconds the block took."""
        started = time.monotonic()
        yield
        self.facts["seconds"][what] = round(time.monotonic() - started, 2)

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
