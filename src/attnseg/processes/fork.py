"""A process of its own for each job, so that one that is killed takes no other with it."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_in_child(function: Callable[[], int]) -> int:
    """Call a function in a fork of this process, and wait for it.

    Signals that ask this process to stop are passed on to the child, and this process waits for its
    end. If this process is killed, the child gets SIGTERM (on Linux).

    Args:
        function: returns an exit code; may raise SystemExit.

    Returns:
        The exit code; for a child that a signal killed, the signal's number, negative.

    Raises:
        SystemExit: this process was asked to stop; the code is 128 + the signal's number.
    """
    parent = os.getpid()
    # A fork, not a new interpreter: what is imported already, torch above all, takes seconds.
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_main, args=(function, parent))
    sys.stdout.flush()
    sys.stderr.flush()
    child.start()
    received: list[int] = []
    try:
        with _forwarding(child.pid or 0, received):
            child.join()
    finally:  # another handler may have raised
        if child.is_alive():
            child.terminate()
            child.join()
    if received:
        raise SystemExit(128 + received[0])
    return child.exitcode or 0


def _main(function: Callable[[], int], parent: int) -> None:
    os.setpgid(0, 0)  # the terminal's Ctrl-C reaches the parent alone, which passes it on
    for number in (*FORWARDED, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    # A cluster sends it to all processes of a job, and the parent's launcher answers it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be noticed
            raise SystemExit(128 + signal.SIGTERM)
    try:
        code = function()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    raise SystemExit(code)


@contextmanager
def _forwarding(pid: int, received: list[int]) -> Iterator[None]:
    """Pass signals on to a process and note them, while the block runs."""

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        os.kill(pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
