"""What every phantom shares: made once, whole or not at all, and never over something else."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from attnseg.errors import DataError

SPEC_FILE = "phantom.json"
Spec = TypeVar("Spec")


def preset_of(presets: Mapping[str, Spec], name: str) -> Spec:
    """Return a preset by its name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if name not in presets:
        raise ValueError(f"no preset {name!r}; choose one of {', '.join(presets)}")
    return presets[name]


def make_once(root: Path, described: Mapping[str, object], write: Callable[[Path], None]) -> None:
    """Make a phantom at `root`, unless the same one is there.

    Args:
        root: becomes what the reader takes as its root.
        described: all that decides the phantom's bytes, kept in `phantom.json`.
        write: fills an empty folder.

    Raises:
        DataError: `root` holds something else, or another phantom.
    """
    wanted = json.dumps(described, indent=1)
    if root.exists():
        _check_same_phantom(root, wanted)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        write(part)
        (part / SPEC_FILE).write_text(wanted)
        part.chmod(0o755)
        try:
            part.rename(root)
        except OSError:  # another process may have been first
            if not root.exists():
                raise
            _check_same_phantom(root, wanted)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_same_phantom(root: Path, wanted: str) -> None:
    there = root / SPEC_FILE
    if not there.is_file() or there.read_text() != wanted:
        raise DataError(
            f"{root}: holds something else than the phantom asked for; remove or rename it"
        )
