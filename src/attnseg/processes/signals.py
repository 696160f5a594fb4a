"""Handles the signals that ask a run to stop: between two training steps, else immediately."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

ECHO = 1.0  # Seconds in which SLURM's signal may arrive again, forwarded by the parent process.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)


class Stopped(BaseException):
    """Raised when training has stopped on request and has saved a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number  # of the signal


class Stopping:
    """Signal handler of a run.

    While `deferring`, the first signal is only recorded, and training stops at its next step. A
    second signal ends the run immediately, unless it is an echo of the first.
    """

    def __init__(self) -> None:
        self.deferring = False
        self.asked = 0  # number of the recorded signal; 0 if none
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Record a first signal instead of answering it, while the block runs."""
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False

    def install(self) -> None:
        """Install the handler, again if other code has replaced it."""
        if threading.current_thread() is not threading.main_thread():
            return  # Only the main thread may install handlers.
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:  # A signal that nohup ignores stays ignored.
                self._before.setdefault(number, before)
                signal.signal(number, self._answer)

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _answer(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.deferring and not self.asked:
            self.asked, self._since = number, now
        elif not (self.deferring and number == self.asked and now - self._since < ECHO):
            raise ending(number)


def ending(number: int) -> BaseException:
    """Return the exception by which a signal ends a command with exit code 130 or 143."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(143)


def leave_to_the_main_process(worker: int) -> None:
    """Ignore the signals in a loader process, since terminals and SLURM signal all processes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
