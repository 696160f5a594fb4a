"""Creation of phantoms: made once, complete or not at all, and never over other files."""

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
    """Return the preset of a name.

    Raises:
        ValueError: there is no such preset; lists the existing ones.
    """
    if name not in presets:
        raise ValueError(f"no preset {name!r}; choose one of {', '.join(presets)}")
    return presets[name]


def make_once(root: Path, spec: Mapping[str, object], write: Callable[[Path], None]) -> None:
    """Make a phantom at `root`, unless the same one exists there.

    Args:
        root: root folder of the phantom, for its reader.
        spec: everything that decides the phantom's bytes; kept in `phantom.json`. Its `version` is
            raised whenever the same options give other bytes.
        write: writes the phantom's files to an empty folder.

    Raises:
        DataError: `root` holds other files, or another phantom.
    """
    expected = json.dumps(spec, indent=1)
    if root.exists():
        _check_same_phantom(root, expected)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        write(part)
        (part / SPEC_FILE).write_text(expected)
        part.chmod(0o755)
        try:
            part.rename(root)
        except OSError:  # Another process may have made the phantom in the meantime.
            if not root.exists():
                raise
            _check_same_phantom(root, expected)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_same_phantom(root: Path, expected: str) -> None:
    spec_file = root / SPEC_FILE
    if not spec_file.is_file() or spec_file.read_text() != expected:
        raise DataError(
            f"{root}: holds something else than the phantom asked for; remove or rename it"
        )
