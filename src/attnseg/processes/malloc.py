"""Tunes glibc's malloc so that the memory of one training step is reused by the next."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of the GNU C library


def keep_freed_memory() -> None:
    """Keep freed memory in this process, for computations on the CPU.

    By default every tensor above 32 MB is mapped anew and zeroed page by page at every step, which
    takes a seventh of a training step of DAE-Former. Without the GNU C library on Linux, this
    function does nothing.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)  # never
