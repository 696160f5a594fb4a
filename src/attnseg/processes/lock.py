"""A file lock with a heartbeat, which the operating system releases when its holder dies."""

import fcntl
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from attnseg.files import UNSUPPORTED, write_text

BEAT = 20.0  # Seconds between two heartbeats.
DEAD = 90.0  # Seconds without a heartbeat after which a holder that cannot be asked counts as dead.
SETTLE = 2.0  # Seconds after which the last of several takers is known, where there are no locks.


class Lock:
    """A lock file that names its holder; held until released or until the process ends.

    It is a POSIX record lock, so that forked children such as loader processes do not hold it and
    a killed process leaves nothing to clean up. Some network file systems share files but no locks,
    and some refuse locks altogether. There, the modification time, which the holder renews, shows
    that it is alive, and of several that come at once the last one to write its name is the holder.

    Args:
        path: of the lock file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None
        self._released = threading.Event()

    def take(self) -> str | None:
        """Take the lock; return `None` if this process holds it now, else who holds it."""
        while True:
            file = self.path.open("a+")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _read(file)
                if error.errno in UNSUPPORTED:
                    return self._take_by_heartbeat(file, holder)
                file.close()
                return holder or "another process"
            if _is_at(file, self.path):
                break
            file.close()  # The last holder has just removed the file.
        if (holder := _read(file)) and _beats_elsewhere(holder, self.path):
            file.close()
            return holder
        file.truncate(0)
        file.write(f"{_own_name()}\n")
        file.flush()
        self._hold(file)
        return None

    def _take_by_heartbeat(self, file: IO[str], holder: str) -> str | None:
        """Take the lock where the file system has none; see `take`."""
        if _is_alive(holder, self.path):
            file.close()
            return holder
        write_text(self.path, f"{_own_name()}\n")
        time.sleep(SETTLE)
        holder = self.path.read_text().strip()
        if holder != _own_name():
            file.close()
            return holder
        self._hold(file)
        return None

    def _hold(self, file: IO[str]) -> None:
        self._file = file
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._file is not None:
            self._released.set()
            self.path.unlink(missing_ok=True)  # While locked, it cannot be another holder's file.
            self._file.close()
            self._file = None

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            try:
                os.utime(self.path)
            except OSError:  # The folder was deleted; the run itself reports that.
                return


def is_held(path: Path) -> bool:
    """Return whether another living process holds a lock file; must not be called by its holder.

    The file may be another person's, who allows no more than to read it, or not even that.
    """
    try:
        with path.open() as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return error.errno not in UNSUPPORTED or _is_alive(_read(file), path)
            return _beats_elsewhere(_read(file), path)
    except FileNotFoundError:
        return False
    except PermissionError:
        return _beats(path)


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_here(holder: str) -> bool:
    return holder.endswith(f" on {socket.gethostname()}")


def _is_alive(holder: str, path: Path) -> bool:
    """Return whether a holder lives, where no lock can tell: by its heartbeat, and here its id."""
    if not holder or not _beats(path):
        return False
    if not _is_here(holder):
        return True
    try:
        os.kill(int(holder.split()[1]), 0)
    except (ProcessLookupError, ValueError, IndexError):
        return False
    except PermissionError:  # It is another person's.
        return True
    return True


def _beats_elsewhere(holder: str, path: Path) -> bool:
    """Return whether a holder on another machine has renewed the file within `DEAD` seconds."""
    return bool(holder) and not _is_here(holder) and _beats(path)


def _beats(path: Path) -> bool:
    """Return whether a file was renewed within `DEAD` seconds by the clock of its file system."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:  # The folder cannot be written, so that this machine's clock must do.
        now = time.time()
    return now - path.stat().st_mtime < DEAD
