"""The `dataset.json` of nnU-Net's raw format or of the Medical Segmentation Decathlon.

The Decathlon's format, which version 1 of nnU-Net uses, too, is rewritten as version 2 at first:

    modality      {"0": "CT"}                    channel_names
    labels        {"0": "background", "1": ...}  values by name, not names by value
    training      [{"image": ..., "label": ...}] dataset; in version 1 without the channel's number
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from attnseg.data.folders import find_ending
from attnseg.data.labels import MAX_EXCLUSIVE, MAX_OVERLAPPING
from attnseg.data.readers.nifti import ENDINGS as VOLUME_ENDINGS
from attnseg.errors import DataError, Problems

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
        ignore: value in the label files of voxels whose class nobody knows; `None` without one.
        listed: the entry of each case under `dataset`, not checked yet; `None` without that key.
        sizes: `numTraining` and `numTest`, where they are whole numbers.
    """

    channels: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    overlapping: bool
    ending: str
    ignore: int | None
    listed: dict[str, Any] | None
    sizes: dict[str, int]


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
        content = _convert_decathlon(path, content)
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
        regions, overlapping, ignore = _regions(path, content["labels"])
    if (ending := content["file_ending"]) not in VOLUME_ENDINGS + PICTURE_ENDINGS:
        problems.found.append(
            f"{path}: file_ending {ending!r} is not supported; convert the files to one of "
            f"{', '.join(VOLUME_ENDINGS + PICTURE_ENDINGS)}"
        )
    problems.stop()
    sizes = {key: content.get(key) for key in ("numTraining", "numTest")}
    numbers = {key: size for key, size in sizes.items() if type(size) is int}
    return Description(channels, regions, overlapping, ending, ignore, listed, numbers)


def _convert_decathlon(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a Decathlon's dataset.json, or of nnU-Net's version 1, as version 2."""
    names, pairs = content.get("labels"), content.get("training")
    if not isinstance(names, dict) or not isinstance(pairs, list) or not pairs:
        raise DataError(
            f"{path}: written for version 1 of nnU-Net; convert it to version 2 "
            "(nnUNetv2_convert_old_nnUNet_dataset)"
        )
    labels: dict[str, int] = {}
    cases: dict[str, dict[str, Any]] = {}
    problems = Problems()
    for value, name in names.items():
        name = "background" if value == "0" else name
        if not re.fullmatch(r"\d{1,9}", value) or not isinstance(name, str) or name in labels:
            problems.found.append(
                f"{path}: label {value!r} is {json.dumps(name)[:40]}, no name of its own for a "
                "whole number; correct it"
            )
        labels[str(name)] = int(value) if value.isdecimal() else 0
    for pair in pairs:
        files = [pair.get(key) for key in ("image", "label")] if isinstance(pair, dict) else [None]
        ending = find_ending(files[-1], VOLUME_ENDINGS) if isinstance(files[-1], str) else ""
        case = PurePosixPath(str(files[-1])[: -len(ending)]).name
        if not isinstance(files[0], str) or not ending or case in cases:
            problems.found.append(
                f"{path}: training holds {json.dumps(pair)[:80]}, not an image and a label of a "
                "case of its own; correct it"
            )
        cases[case] = {"images": files[:1], "label": files[-1]}
    problems.stop()
    first = cases[next(iter(cases))]["images"][0]
    ending = find_ending(first, VOLUME_ENDINGS)
    numbered = f"{first[: len(first) - len(ending)]}_0000{ending}"
    version_1 = not (path.parent / first).exists() and (path.parent / numbered).exists()
    converted = {"channel_names": content.get("modality"), "labels": labels, "file_ending": ending}
    return content | converted | ({} if version_1 else {"dataset": cases})


def _channel_names(path: Path, names: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels, whose keys must be 0, 1, ... in any order."""
    if not names or sorted(names) != sorted(map(str, range(len(names)))):
        raise DataError(
            f"{path}: channel_names has keys {', '.join(names)[:80]!r}, not 0, 1, ...; correct it"
        )
    return tuple(str(names[str(number)]) for number in range(len(names)))


def _regions(
    path: Path, labels: dict[str, Any]
) -> tuple[dict[str, tuple[int, ...]], bool, int | None]:
    """Return the values of each foreground class, whether classes are regions, and `ignore`."""
    overlapping = any(isinstance(value, list) for value in labels.values())
    problems = Problems()
    regions: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        values = tuple(value) if isinstance(value, list) else (value,)
        label = f"{path}: label {name!r} is {json.dumps(value)[:40]}"
        if not (name.strip() and name.isprintable()):
            problems.found.append(f"{label}: empty, or letters that cannot be printed; rename it")
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
    ignored = regions.pop("ignore", (None,))
    if len(ignored) > 1 or any(set(ignored) & set(values) for values in regions.values()):
        raise DataError(f"{path}: label 'ignore' is not one value of its own; correct it")
    if not overlapping:
        regions = dict(sorted(regions.items(), key=lambda item: item[1]))
    most = (MAX_OVERLAPPING if overlapping else MAX_EXCLUSIVE) - ("ignore" in labels)
    if not 1 <= len(regions) <= most:
        raise DataError(
            f"{path}: {len(regions)} {'regions' if overlapping else 'labels'} beside the "
            f"background; from 1 to {most} are supported"
        )
    return regions, overlapping, ignored[0]


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; Python alone would silently keep the last of equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} appears twice")
    return content
