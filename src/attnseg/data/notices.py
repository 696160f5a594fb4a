"""Warnings about files: of each kind, a batch logs one with its file and counts the others."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from attnseg.errors import join_names

log = logging.getLogger(__name__)

FileWarning = tuple[Path, str]
MOST_NAMES = 10  # files that a count names
# The files of each warning of a batch, the first of which has been logged.
_batch: ContextVar[dict[str, list[Path]] | None] = ContextVar("_batch", default=None)
_collected: ContextVar[list[FileWarning] | None] = ContextVar("_collected", default=None)


def warn_of_file(path: Path, text: str) -> None:
    """Log a warning about a file, unless the same has been said of another file of the batch."""
    if (collected := _collected.get()) is not None:
        collected.append((path, text))
        return
    if (batch := _batch.get()) is not None:
        batch.setdefault(text, []).append(path)
        if len(batch[text]) > 1:
            return
    log.warning("%s: %s", path, text)


@contextmanager
def collecting_warnings() -> Iterator[list[FileWarning]]:
    """Collect warnings instead of logging them, for work in threads or other processes."""
    collected: list[FileWarning] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


@contextmanager
def counting_warnings() -> Iterator[None]:
    """Make what is done within one batch, at whose end repeated warnings are counted."""
    batch: dict[str, list[Path]] = {}
    token = _batch.set(batch)
    try:
        yield
    finally:
        _batch.reset(token)
        for text, (first, *others) in batch.items():
            if names := [str(path) for path in dict.fromkeys(others) if path != first]:
                more = "1 more file" if len(names) == 1 else f"{len(names)} more files"
                log.warning("%s: %s (%s)", more, text, join_names(names, MOST_NAMES))
