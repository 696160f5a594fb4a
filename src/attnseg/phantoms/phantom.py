"""Creation of phantoms: made once, complete or not at all, and never over other files.

The makers of all phantoms end in `make_preset`. A phantom's specification is a dataclass that
decides all of its bytes and has a field `seed`; another seed gives other anatomies or pictures.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnseg.errors import DataError
from attnseg.files import make_temporary_folder

SPEC_FILE = "phantom.json"
VERSION = 1  # to be raised whenever the same specification gives other bytes
Spec = TypeVar("Spec", bound=Any)


def make_preset(
    root: Path,
    presets: Mapping[str, Spec],
    name: str,
    seed: int,
    write: Callable[[Spec, Path], None],
    **options: str,
) -> None:
    """Make a preset's phantom at `root`, unless the same one exists there.

    `seed` replaces the preset's own. `write` writes the phantom of a specification to an empty
    folder, and `options` are all that decides its bytes besides the specification.

    Raises:
        ValueError: there is no such preset.
        DataError: `root` holds other files, or another phantom.
    """
    if name not in presets:
        raise ValueError(f"no preset {name!r}; choose one of {', '.join(presets)}")
    spec = replace(presets[name], seed=seed)
    everything = {"version": VERSION, **options, **asdict(spec)}
    make_once(root, everything, lambda folder: write(spec, folder))


def make_once(root: Path, spec: Mapping[str, object], write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder and rename it to `root`, unless the same phantom exists there.

    `spec` is everything that decides the phantom's bytes; it is kept in `phantom.json`.
    """
    expected = json.dumps(spec, indent=1)
    if root.exists():
        _check_same_phantom(root, expected)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    part = make_temporary_folder(root.parent, f".{root.name}.")
    try:
        write(part)
        (part / SPEC_FILE).write_text(expected)
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


def save_picture(
    root: Path, part: str, name: str, image: NDArray[Any], labels: NDArray[Any]
) -> None:
    """Write a grey picture and its label map, `[H, W]`, in nnU-Net's raw format.

    `part` is `Tr` or `Ts`; values are rounded to 8 bits.
    """
    for folder, file, values in (("images", f"{name}_0000", image), ("labels", name, labels)):
        (root / f"{folder}{part}").mkdir(exist_ok=True)
        pixels = np.asarray(np.rint(values), np.uint8)
        Image.fromarray(pixels).save(root / f"{folder}{part}" / f"{file}.png")


def write_description(root: Path, classes: Sequence[str], training: int) -> None:
    """Write `dataset.json` of pictures of one channel, of which `training` are for training."""
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, **{name: i + 1 for i, name in enumerate(classes)}},
        "numTraining": training,
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
