"""The `dataset.json` of nnU-Net's raw format, version 2: read, checked and described."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnseg.data.labels import MAX_EXCLUSIVE, MAX_OVERLAPPING
from attnseg.errors import DataError, Problems

VOLUME_ENDINGS = (".nii.gz", ".nii")
PICTURE_ENDINGS = (".png", ".bmp", ".tif")
REQUIRED = {"channel_names": dict, "labels": dict, "file_ending": str}


@dataclass(frozen=True)
class Description:
    """The content of a dataset.json.

    Attributes:
        channels: names of the channels.
        regions: values in the label files of each foreground class.
        overlapping: whether classes are regions, which may share values.
        ending: ending of all file names.
        listed: the entry of each case under `dataset`, not checked yet; `None` without that key.
    """

    channels: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    overlapping: bool
    ending: str
    listed: dict[str, Any] | None


def read_description(root: Path) -> Description:
    """Read and check the dataset.json in a dataset's root.

    Raises:
        DataError: the file cannot be read, or its content is incomplete, contradictory or not
            supported; lists every problem.
    """
    path = root / "dataset.json"
    if not path.is_file():
        raise DataError(
            f"{path}: not found; set dataset.root to the folder that holds dataset.json"
        )
    try:
        content = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_refuse_repeated_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error}); mend it") from error
    return _parse_description(path, content)


def _parse_description(path: Path, content: Any) -> Description:  # noqa: ANN401
    if not isinstance(content, dict):
        raise DataError(f"{path}: not an object of keys and values; mend it")
    labels = content.get("labels")
    inverted = isinstance(labels, dict) and any(isinstance(v, str) for v in labels.values())
    if "modality" in content or inverted:
        raise DataError(
            f"{path}: written for version 1 of nnU-Net; convert it to version 2 "
            "(nnUNetv2_convert_old_nnUNet_dataset)"
        )
    if wrong := [key for key, kind in REQUIRED.items() if not isinstance(content.get(key), kind)]:
        kinds = {dict: "object", str: "text"}
        raise DataError(
            *(f"{path}: {key} is missing or no {kinds[REQUIRED[key]]}; correct it" for key in wrong)
        )
    listed = content.get("dataset")
    if listed is not None and not isinstance(listed, dict):
        raise DataError(f"{path}: dataset is no object of cases; correct it")
    problems = Problems()
    with problems.gathered():
        channels = _channel_names(path, content["channel_names"])
    with problems.gathered():
        regions, overlapping = _regions(path, content["labels"])
    if (ending := content["file_ending"]) not in VOLUME_ENDINGS + PICTURE_ENDINGS:
        problems.found.append(
            f"{path}: file_ending {ending!r} is not supported; convert the files to one of "
            f"{', '.join(VOLUME_ENDINGS + PICTURE_ENDINGS)}"
        )
    problems.stop()
    return Description(channels, regions, overlapping, ending, listed)


def _channel_names(path: Path, names: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels, whose keys must be 0, 1, ... in any order."""
    if not names or sorted(names) != sorted(map(str, range(len(names)))):
        raise DataError(
            f"{path}: channel_names has keys {', '.join(names)[:80]!r}, not 0, 1, ...; correct it"
        )
    return tuple(str(names[str(number)]) for number in range(len(names)))


def _regions(path: Path, labels: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Return the values of each foreground class, and whether classes are regions."""
    if "ignore" in labels:
        raise DataError(f"{path}: the label 'ignore' is not supported; relabel those voxels")
    overlapping = any(isinstance(value, list) for value in labels.values())
    problems = Problems()
    regions: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        values = tuple(value) if isinstance(value, list) else (value,)
        label = f"{path}: label {name!r} is {json.dumps(value)[:40]}"
        # `isinstance` would accept true and false as whole numbers.
        if not values or any(type(v) is not int or v < 0 for v in values):
            problems.found.append(
                f"{label}, not a whole number from 0 or a list of them; correct it"
            )
        elif (name == "background") != (0 in values) or (0 in values and len(values) > 1):
            problems.found.append(f"{label}; background, and it alone, is 0")
        elif len(set(values)) < len(values) or set(values) in map(set, regions.values()):
            problems.found.append(f"{label}, a value that comes twice; correct it")
        else:
            regions[name] = values
    problems.stop()
    regions.pop("background", None)
    if not overlapping:
        regions = dict(sorted(regions.items(), key=lambda item: item[1]))
    most = MAX_OVERLAPPING if overlapping else MAX_EXCLUSIVE
    if not 1 <= len(regions) <= most:
        raise DataError(
            f"{path}: {len(regions)} {'regions' if overlapping else 'labels'} beside the "
            f"background; from 1 to {most} are supported"
        )
    return regions, overlapping


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; Python alone would silently keep the last of equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} appears twice")
    return content
