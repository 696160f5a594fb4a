"""Atomic file writes, and the checksums of files."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from attnseg.errors import ResourceError

# Error codes of file systems that lack an operation, such as locks or syncing of folders.
UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOTTY}
)
FEW_FILES = 32  # Others may remove some between an error and the question for its cause.


@contextmanager
def replacing(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends without an error.

    The file is on disk before it takes its name, so that a power cut leaves the old or the new one.

    Args:
        path: file to replace or create.
        before: called when the temporary file is on disk, just before it is renamed.
    """
    name = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
    # The mode is left to the umask: those who share the folder may read the file, or nobody may.
    handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            sync(file.fileno())
        before()
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def sync(handle: int) -> None:
    """Write a file or folder to disk, unless its file system does not support that."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _sync_folder(folder: Path) -> None:
    """Write the entries of a folder to disk, so that a renamed file survives a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Files may be put into it, but not listed.
        return
    try:
        sync(handle)
    finally:
        os.close(handle)


def make_temporary_folder(parent: Path, prefix: str) -> Path:
    """Make a new folder whose mode follows the umask, unlike those of `tempfile`."""
    folder = parent / f"{prefix}{secrets.token_hex(4)}"
    folder.mkdir()
    return folder


def remove_abandoned(parent: Path, prefix: str, age: float = 3600) -> None:
    """Remove temporary folders, unchanged for `age` seconds, whose makers were killed."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError):  # Another process may remove it, too.
            if time.time() - folder.stat().st_mtime > age:
                shutil.rmtree(folder, ignore_errors=True)


def check_room(folder: Path, needed: int, content: str) -> None:
    """Refuse with a `ResourceError` to write files where fewer than `needed` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder}: {needed / 1e9:.2g} GB are needed for {content} and {free / 1e9:.2g} GB "
            "are free; free space or set paths.outputs"
        )


def explain_write_error(place: Path | str, error: OSError) -> ResourceError:
    """Return the error for a file or folder that could not be written, or not be reached."""
    reason = error.strerror or error
    if error.errno == errno.ENOSPC and _is_out_of_inodes(Path(place).absolute()):
        return ResourceError(
            f"{place}: {reason}, not for bytes but for no more files (`df -i`); remove some there"
        )
    return ResourceError(f"{place}: {reason}; check the path, permissions and space")


def _is_out_of_inodes(path: Path) -> bool:
    """Return whether the file system of a path takes hardly any other file."""
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            return found.f_files > 0 and found.f_favail < FEW_FILES
    return False


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote in a folder."""
    for path in folder.rglob(".*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def is_whole(path: Path) -> bool:
    """Return whether a file exists and has the SHA-256 in `<name>.sha256` beside it."""
    sidecar = path.with_name(f"{path.name}.sha256")
    return path.is_file() and sidecar.is_file() and file_digest(path) in sidecar.read_text()


def file_digest(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
