"""Runs a job in a forked process, so that a job that is killed takes no other with it."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from attnseg.system import die_with_parent

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_in_child(function: Callable[[], int]) -> int:
    """Call a function in a fork of this process, and wait for its end.

    Signals that ask this process to stop are forwarded to the child. If this process is killed, the
    child receives SIGTERM (on Linux). The function returns an exit code or raises SystemExit.

    Returns:
        The child's exit code, or the negative number of the signal that killed it.

    Raises:
        SystemExit: this process was asked to stop; the code is 128 + the signal's number.
    """
    parent = os.getpid()
    # A new interpreter would spend seconds on imports, torch above all.
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_main, args=(function, parent))
    sys.stdout.flush()
    sys.stderr.flush()
    child.start()
    received: list[int] = []
    try:
        with _forwarding(child.pid or 0, received):
            child.join()
    finally:  # Another signal handler may have raised.
        if child.is_alive():
            child.terminate()
            child.join()
    if received:
        raise SystemExit(128 + received[0])
    return child.exitcode or 0


def _main(function: Callable[[], int], parent: int) -> None:
    os.setpgid(0, 0)  # Ctrl-C then reaches the parent only, which forwards it.
    for number in (*FORWARDED, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    # A cluster sends SIGUSR2 to all processes of a job; the launcher in the parent handles it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    die_with_parent(parent)
    try:
        code = function()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    raise SystemExit(code)


@contextmanager
def _forwarding(pid: int, received: list[int]) -> Iterator[None]:
    """Forward signals to a process and record them while the block runs."""

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        os.kill(pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may handle signals.
        return
    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
