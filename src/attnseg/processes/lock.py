"""A file lock with a heartbeat, which the operating system releases when its holder dies."""

import fcntl
import os
import socket
import threading
import time
from pathlib import Path
from typing import IO

BEAT = 20.0  # Seconds between two heartbeats.
DEAD = 90.0  # Seconds without a heartbeat after which a holder on another machine counts as dead.


class Lock:
    """A lock file that names its holder; held until released or until the process ends.

    It is a POSIX record lock, so that forked children such as loader processes do not hold it and
    a killed process leaves nothing to clean up. Some network file systems share files but no locks;
    there, the modification time, which the holder renews, shows that it is alive.

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
            except OSError:
                holder = _read(file)
                file.close()
                return holder or "another process"
            if _is_at(file, self.path):
                break
            file.close()  # The last holder has just removed the file.
        if (holder := _read(file)) and _beats_elsewhere(holder, self.path):
            file.close()
            return holder
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()
        return None

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
    """Return whether another living process holds a lock file; must not be called by its holder."""
    try:
        with path.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _beats_elsewhere(_read(file), path)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _beats_elsewhere(holder: str, path: Path) -> bool:
    """Return whether a holder on another machine has renewed the file within `DEAD` seconds."""
    ours = holder.endswith(f" on {socket.gethostname()}")
    return not ours and bool(holder) and time.time() - path.stat().st_mtime < DEAD
