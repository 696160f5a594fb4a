"""Writing files that are there whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from attnseg.errors import ResourceError


@contextmanager
def replacing(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """Open a file beside `path` that takes its place, safe on disk, when all went well.

    Args:
        path: what is replaced.
        before: called when the file is on disk, just before it takes its place.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        before()
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Have what was renamed in a folder survive a power cut, before anything that relies on it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_room(folder: Path, needed: int, content: str) -> None:
    """Refuse to start a job that would fill the disk.

    Args:
        folder: in which files will be written.
        needed: bytes.
        content: kind of the files, for the message.

    Raises:
        ResourceError: less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder}: {needed / 1e9:.2g} GB are needed for {content} and {free / 1e9:.2g} GB "
            "are free; free space or set paths.outputs"
        )


def remove_unfinished(folder: Path) -> None:
    """Remove what `replacing` left in a folder when its process was killed."""
    for path in folder.rglob(".*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def is_whole(path: Path) -> bool:
    """Return whether a file is there and has the digest that stands beside it."""
    sidecar = path.with_name(f"{path.name}.sha256")
    if not path.is_file() or not sidecar.is_file():
        return False
    return file_digest(path) in sidecar.read_text()


def file_digest(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
