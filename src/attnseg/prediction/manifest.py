"""The manifest of an output folder: `manifest.json`, and a journal until that is written.

The journal gets one line per item as soon as the item's files are safe on disk. A command that was
killed can therefore be repeated: it resumes where it stopped, and nothing is done twice.
"""

import fcntl
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from attnseg.errors import ConfigError, InUseError
from attnseg.files import UNSUPPORTED, file_digest, remove_unfinished, sync, write_text
from attnseg.prediction.results import reporting_write_errors

MANIFEST = "manifest.json"
JOURNAL = "progress.jsonl"
Facts = dict[str, Any]


class Manifest:
    """The entries of an output folder, which one process at a time may write.

    Args:
        output: folder of all results, created if missing.
        settings: digest of everything but the input that determines the results.

    Raises:
        ConfigError: the folder holds files that are not of a prediction.
        InUseError: another process writes to it.
        ResourceError: it cannot be written.
    """

    def __init__(self, output: Path, settings: str) -> None:
        self.output, self.settings = output, settings
        journal, manifest = output / JOURNAL, output / MANIFEST
        ours = journal.exists() or manifest.exists()
        if output.is_dir() and any(output.iterdir()) and not ours:
            raise ConfigError(
                f"output: {output} holds other things, which are not overwritten; give a new folder"
            )
        with reporting_write_errors(journal):
            self._file = journal.open("ab+", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:  # Some file systems have no locks.
                self._file.close()
                raise InUseError(
                    f"{output}: another process writes to it; wait for it or give another output"
                ) from None
        remove_unfinished(output)
        self.earlier = {entry["name"]: entry for entry in _read_manifest(manifest)}
        self._file.seek(0)
        written = self._file.read()
        for line in written.splitlines():
            if entry := _parse_line(line):
                self.earlier[entry["name"]] = entry
        if written and not written.endswith(b"\n"):  # A line that was cut off stays alone.
            self._file.write(b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def find_done(self, name: str, digest: str) -> Facts | None:
        """Return the earlier entry of an item if its results are whole and would be the same."""
        entry = self.earlier.get(name)
        if entry is None or (entry["digest"], entry["settings"]) != (digest, self.settings):
            return None
        for path, expected in entry["outputs"].items():
            if not (self.output / path).is_file() or file_digest(self.output / path) != expected:
                return None
        return entry

    def add(self, entry: Facts) -> None:
        """Append the entry of an item, whose results are on disk, to the journal."""
        with reporting_write_errors(self.output / JOURNAL):
            self._file.write((json.dumps(entry) + "\n").encode())
            sync(self._file.fileno())

    def digest_results(self, files: Sequence[Path]) -> dict[str, str]:
        """Return the SHA-256 of result files by their path below the output."""
        return {path.relative_to(self.output).as_posix(): file_digest(path) for path in files}

    def close(self, facts: Facts) -> None:
        """Write `manifest.json`, and remove the journal, which is not needed any more."""
        with reporting_write_errors(self.output / MANIFEST):
            write_text(self.output / MANIFEST, json.dumps(facts, indent=1) + "\n")
            (self.output / JOURNAL).unlink()


def digest_files(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the names and contents of files, in any order."""
    lines = sorted(f"{path.name} {file_digest(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_manifest(path: Path) -> list[Facts]:
    try:
        entries = json.loads(path.read_text())["items"]
        return [entry for entry in entries if _is_entry(entry)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _parse_line(line: bytes) -> Facts | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if _is_entry(entry) else None


def _is_entry(value: object) -> bool:
    return isinstance(value, dict) and (
        {"name", "digest", "settings", "outputs"} <= value.keys()
        and isinstance(value["outputs"], dict)
    )
