"""What was done: `manifest.json`, and until that is written a line for each item as it is done.

A line is appended when an item's files are safe on disk, so that a command that was killed goes on
where it was, and nothing is done twice.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from attnseg.errors import ConfigError, InUseError
from attnseg.files import file_digest, remove_unfinished, write_text
from attnseg.predict.results import written

MANIFEST = "manifest.json"
LINES = "progress.jsonl"
Facts = dict[str, Any]


class Record:
    """The record of an output folder, held by one process at a time.

    Args:
        output: folder of all results; is made.
        settings: digest of all that decides the results but the input.

    Raises:
        ConfigError: the folder holds what is not of a prediction.
        InUseError: another process writes to it.
        ResourceError: it cannot be written.
    """

    def __init__(self, output: Path, settings: str) -> None:
        self.output, self.settings = output, settings
        lines, manifest = output / LINES, output / MANIFEST
        if output.is_dir() and any(output.iterdir()) and not (lines.exists() or manifest.exists()):
            raise ConfigError(
                f"output: {output} holds other things, which are not overwritten; give a new folder"
            )
        with written(lines):
            self._file = lines.open("ab+", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InUseError(
                f"{output}: another process writes to it; wait for it or give another output"
            ) from None
        remove_unfinished(output)
        self.before = {item["name"]: item for item in _items(manifest)}
        self._file.seek(0)
        kept = self._file.read()
        for line in kept.splitlines():
            if item := _item(line):
                self.before[item["name"]] = item
        if kept and not kept.endswith(b"\n"):  # the line that was cut off stays alone
            self._file.write(b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def done(self, name: str, digest: str) -> Facts | None:
        """Return what was noted of an item, if its results are there and would be the same.

        Args:
            name: of the item.
            digest: of its files.
        """
        item = self.before.get(name)
        if item is None or (item["digest"], item["settings"]) != (digest, self.settings):
            return None
        for path, expected in item["outputs"].items():
            if not (self.output / path).is_file() or file_digest(self.output / path) != expected:
                return None
        return item

    def add(self, item: Facts) -> None:
        """Note an item whose results are written."""
        with written(self.output / LINES):
            self._file.write((json.dumps(item) + "\n").encode())
            os.fsync(self._file.fileno())

    def digests(self, files: Sequence[Path]) -> dict[str, str]:
        """Return the SHA-256 of results by their path below the output."""
        return {path.relative_to(self.output).as_posix(): file_digest(path) for path in files}

    def close(self, facts: Facts) -> None:
        """Write the manifest; the lines are not needed any more."""
        with written(self.output / MANIFEST):
            text = json.dumps(facts, indent=1)
            write_text(self.output / MANIFEST, text + "\n")
            (self.output / LINES).unlink()


def files_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the names and contents of files, in any order."""
    lines = sorted(f"{path.name} {file_digest(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _items(manifest: Path) -> list[Facts]:
    try:
        items = json.loads(manifest.read_text())["items"]
        return [item for item in items if _is_whole(item)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _item(line: bytes) -> Facts | None:
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return item if _is_whole(item) else None


def _is_whole(item: object) -> bool:
    return isinstance(item, dict) and (
        {"name", "digest", "settings", "outputs"} <= item.keys()
        and isinstance(item["outputs"], dict)
    )
