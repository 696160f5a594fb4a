"""The memory that this process may still take."""

from pathlib import Path

CONTROL_GROUP = Path("/sys/fs/cgroup")  # of the container, as seen from inside it


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
