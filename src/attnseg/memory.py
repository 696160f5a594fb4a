"""The memory that this process may still take, and errors for want of it."""

import errno
import re
import resource
from pathlib import Path

CONTROL_GROUP = Path("/sys/fs/cgroup")  # of the container, as seen from inside it
# As PyTorch, the system and the loader of libraries word it.
NO_MEMORY = re.compile(
    "out of memory|not enough memory|can(no|')t allocate memory(?! in static)", re.IGNORECASE
)
NOT_LOADED = "failed to map segment"  # For want of memory, or because its disk is mounted noexec.


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error was raised for want of memory, if only to load a library."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return bool(NO_MEMORY.search(str(error))) or (limited and NOT_LOADED in str(error))


def free_memory() -> int | None:
    """Return the bytes that are free or can be freed in the container; `None` if unknown."""
    try:
        with open("/proc/meminfo") as lines:
            meminfo = dict(line.split(":") for line in lines)
        free = 1024 * int(meminfo["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return None
    limit, used = (CONTROL_GROUP / f"memory.{name}" for name in ("max", "current"))
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free
