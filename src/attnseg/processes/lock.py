"""One process per run folder: a lock that the operating system takes back when its holder dies."""

import fcntl
import os
import socket
import threading
import time
from pathlib import Path
from typing import IO

BEAT = 20.0  # seconds between two signs of life
DEAD = 90.0  # seconds without one, after which another machine's holder counts as dead


class Lock:
    """A lock file; it names its holder, and holds until released or until the process ends.

    A POSIX record lock: children of a fork, loader processes say, do not hold it, and a killed
    process leaves nothing to clean up. Where machines share a folder but not its locks, the file's
    time, which the holder renews, tells the others that it lives.

    Args:
        path: of the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None
        self._released = threading.Event()

    def take(self) -> str | None:
        """Take the lock.

        Returns:
            `None` if it is ours now, else who holds it.
        """
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
            file.close()  # its last holder has just removed it
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
        """Give the lock back."""
        if self._file is not None:
            self._released.set()
            self.path.unlink(missing_ok=True)  # while we hold it: nobody else's is removed
            self._file.close()
            self._file = None

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            try:
                os.utime(self.path)
            except OSError:  # the folder was deleted; the run will notice
                return


def is_held(path: Path) -> bool:
    """Return whether a living process holds a lock file. Not to be asked by the holder itself."""
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
    """Return whether a holder is on another machine, and has shown life lately."""
    ours = holder.endswith(f" on {socket.gethostname()}")
    return not ours and bool(holder) and time.time() - path.stat().st_mtime < DEAD
