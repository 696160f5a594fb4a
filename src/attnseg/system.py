"""Cores of this process, its end together with its parent, and a name for its user."""

import ctypes
import getpass
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def count_usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS does not tell which cores a process may use.


def die_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Let this process receive a signal when its parent ends; on Linux only.

    Args:
        parent: its process id, as the parent knew it before this process was started.
        number: of the signal.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # The parent died before prctl was called.
        os.kill(os.getpid(), number)


def name_user() -> None:
    """Give a name to a user who has none, as in many containers: MONAI and PyTorch ask for it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user{os.getuid()}"
