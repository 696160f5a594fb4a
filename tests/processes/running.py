"""Processes of this machine, by their ids."""

from pathlib import Path


def is_running(pid: int) -> bool:
    """Return whether a process is alive; a zombie, which its parent has not reaped yet, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # The second if it ends meanwhile.
        return False
