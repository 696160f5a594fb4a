"""Signals that ask a run to stop: answered between two steps while it trains, else at once."""

import signal
import threading
import time
from types import FrameType
from typing import Any

ECHO = 1.0  # seconds in which SLURM's signal may come again, passed on by the parent process
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)


class Stopped(BaseException):
    """Training has stopped as asked, with a checkpoint.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stopping:
    """Takes the signals that ask a run to stop.

    Attributes:
        deferring: whether a first signal is only noted; a second one is never, except an echo.
        asked: the signal that was noted; 0 if none.
    """

    def __init__(self) -> None:
        self.deferring = False
        self.asked = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals, again if somebody else has taken them since."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:  # nohup means it
                self._before.setdefault(number, before)
                signal.signal(number, self._answer)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _answer(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.deferring and not self.asked:
            self.asked, self._since = number, now
            return
        if self.deferring and number == self.asked and now - self._since < ECHO:
            return
        raise ending(number)


def ending(number: int) -> BaseException:
    """Return the exception that a signal ends a command with: exit code 130 or 143."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(143)


def leave_to_the_main_process(worker: int) -> None:
    """Ignore the signals in a loader process: a terminal or SLURM sends them to all processes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
