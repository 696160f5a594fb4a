"""Reader of any dataset in nnU-Net's raw format, version 2.

Layout (https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md):

    dataset.json                        channel_names, labels, file_ending
    imagesTr/liver_001_0000.nii.gz      a case's first channel; 0001 the second
    labelsTr/liver_001.nii.gz           whole numbers, those of `labels`
    imagesTs/, labelsTs/                likewise, for testing

In place of `imagesTr` and `labelsTr`, a `dataset` in dataset.json may name each case's files.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnseg.data.labels import MAX_EXCLUSIVE, MAX_OVERLAPPING, Labels
from attnseg.data.reader import Case, CaseRef, Reader, shape_text
from attnseg.data.readers.nifti import PLANES, check_same_grid, map_labels, read_nifti
from attnseg.data.readers.pictures import GREY8, GREY16, RGB, read_picture
from attnseg.errors import DataError, Problems

VOLUME_ENDINGS = (".nii.gz", ".nii")
PICTURE_ENDINGS = (".png", ".bmp", ".tif")
REQUIRED = {"channel_names": dict, "labels": dict, "file_ending": str}
Files = tuple[list[Path], Path]  # of the channels and of the label


@dataclass(frozen=True)
class Description:
    """What dataset.json says.

    Attributes:
        channels: names of the channels.
        regions: label values of each foreground class.
        overlapping: whether classes are regions, which share labels.
        ending: of every file's name.
        listed: files of each case, as written, if they are listed.
    """

    channels: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    overlapping: bool
    ending: str
    listed: dict[str, Any] | None


class NNUNet(Reader):
    """A scan, or a picture, is a case.

    Classes are the labels of dataset.json in the order of their values; or, where one of them is a
    list of values, regions in the order written, which may overlap. Cases of `imagesTs` that have
    labels are for testing. An RGB picture supplies three channels.

    Args:
        root: folder that holds `dataset.json`.
        plane: of the slices: axial, coronal or sagittal; for volumes.
        window: intensities that become 0 and 1; without, 0 and 255 for RGB pictures of 8 bit, and
            percentiles of each case for all else.
        patient: regular expression that the whole of a case's name matches, with one group: the
            patient. Without, each case is a patient of its own.

    Raises:
        ValueError: no such plane, an empty window, or no regular expression of one group.
    """

    self_describing = True

    def __init__(
        self,
        root: str | Path,
        plane: str = "axial",
        window: tuple[float, float] | None = None,
        patient: str | None = None,
    ) -> None:
        if plane not in PLANES:
            raise ValueError(f"no plane {plane!r}; choose one of {', '.join(PLANES)}")
        if window is not None and not window[0] < window[1]:
            raise ValueError(f"window {window[0]:g} to {window[1]:g} is empty; give low, high")
        self.root = Path(root)
        self.plane = plane
        self.window = None if window is None else (float(window[0]), float(window[1]))
        self.patient = None if patient is None else _one_group(patient)

    @cached_property
    def labels(self) -> Labels:  # type: ignore[override]
        """The foreground classes; they overlap if they are regions."""
        return Labels(tuple(self._described.regions), self._described.overlapping)

    @cached_property
    def channels(self) -> int:  # type: ignore[override]
        """Number of channels."""
        return len(self._described.channels)

    @cached_property
    def volumetric(self) -> bool:  # type: ignore[override]
        """Whether files are volumes."""
        return self._described.ending in VOLUME_ENDINGS

    def cases(self) -> list[CaseRef]:
        """List the cases by name, those for testing last; see `Reader.cases`."""
        problems = Problems()
        if self._described.listed is None:
            train = self._pairs("Tr", problems)
        else:
            train = self._listed(self._described.listed, problems)
        test = self._pairs("Ts", problems) if (self.root / "labelsTs").is_dir() else {}
        for case in sorted(train.keys() & test.keys()):
            problems.found.append(f"{test[case][1]}: {case} is for training, too; remove one")
        refs = []
        for found, role in ((train, None), (test, "test")):
            for case in sorted(found):
                with problems.gathered():
                    refs.append(self._ref(case, found[case], role))
        if not refs and not problems.found:
            problems.found.append(
                f"{self.root}: no cases found; expected imagesTr/<case>_0000"
                f"{self._described.ending} and labelsTr/<case>{self._described.ending}"
            )
        problems.stop()
        return refs

    def source(self, ref: CaseRef) -> str:
        """Return what each label value becomes in the mask."""
        return json.dumps(self._meaning)

    def read(self, ref: CaseRef) -> Case:
        """Decode one case; see `Reader.read`."""
        *images, label = ref.files
        return (
            self._read_volumes(images, label)
            if self.volumetric
            else self._read_pictures(images, label)
        )

    @cached_property
    def _described(self) -> Description:
        path = self.root / "dataset.json"
        if not path.is_file():
            raise DataError(
                f"{path}: not found; set dataset.root to the folder that holds dataset.json"
            )
        try:
            content = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_unique)
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a readable JSON file ({error}); mend it") from error
        return parse_description(path, content)

    @cached_property
    def _meaning(self) -> dict[int, int]:
        """Value in the mask of each label value."""
        regions = list(self._described.regions.values())
        meaning: dict[int, int] = defaultdict(int, {0: 0})
        for at, values in enumerate(regions):
            for value in values:
                meaning[value] += 1 << at if self.labels.overlapping else at + 1
        return dict(meaning)

    def _pairs(self, part: str, problems: Problems) -> dict[str, Files]:
        """Return the files of each case of `Tr` or `Ts`; keep what is missing or too much."""
        images, labels = self.root / f"images{part}", self.root / f"labels{part}"
        for folder in (images, labels):
            if not folder.is_dir():
                problems.found.append(f"{folder}: not found; restore the folder")
                return {}
        channels: dict[str, dict[int, Path]] = defaultdict(dict)
        for name, path in self._named(images):
            if match := re.fullmatch(r"(.+)_([0-9]{4})", name, re.DOTALL):
                channels[match[1]][int(match[2])] = path
            else:
                problems.found.append(
                    f"{path}: not named <case>_<channel>{self._described.ending} with a channel "
                    "of four digits; rename or remove it"
                )
        masks = dict(self._named(labels))
        for name in sorted(masks.keys() - channels.keys()):
            problems.found.append(f"{masks[name]}: no image in {images}; restore or remove it")
        found = {}
        for name in sorted(channels):
            with problems.gathered():
                label = labels / f"{name}{self._described.ending}"
                found[name] = (self._in_order(images / name, channels[name]), label)
        return found

    def _named(self, folder: Path) -> list[tuple[str, Path]]:
        """Return a folder's files of the dataset's ending, by name without it."""
        ending = self._described.ending
        return [
            (path.name.removesuffix(ending), path)
            for path in sorted(folder.iterdir())
            if path.name.endswith(ending) and not path.name.startswith(".")
        ]

    def _in_order(self, stem: Path, channels: dict[int, Path]) -> list[Path]:
        """Return a case's channels, which must be all, or one RGB picture."""
        wanted = range(self.channels)
        if self._may_be_rgb(len(channels)) and 0 in channels:
            wanted = range(1)
        missing = [number for number in wanted if number not in channels]
        extra = [number for number in channels if number not in wanted]
        problems = [
            f"{stem}_{number:04d}{self._described.ending}: not found; restore it or remove the case"
            for number in missing
        ] + [
            f"{channels[number]}: dataset.json names {self.channels} channels, counted from 0000; "
            "correct it or remove the file"
            for number in extra
        ]
        if problems:
            raise DataError(*problems)
        return [channels[number] for number in wanted]

    def _may_be_rgb(self, files: int) -> bool:
        return files == 1 and self.channels == 3 and not self.volumetric

    def _listed(self, listed: dict[str, Any], problems: Problems) -> dict[str, Files]:
        """Return the files of each case that dataset.json lists."""
        found = {}
        for case, entry in listed.items():
            with problems.gathered():
                found[case] = self._listed_case(case, entry)
        return found

    def _listed_case(self, case: str, entry: Any) -> Files:  # noqa: ANN401
        table = self.root / "dataset.json"
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not case or re.search(r"[/\\\x00-\x1f]", case):
            raise DataError(f"{table}: case {case!r} is no name for a file; rename it")
        names: list[Any] = [*images, label] if isinstance(images, list) else [None]
        if not all(isinstance(name, str) for name in names):
            raise DataError(
                f"{table}: case {case!r} is not written "
                '{"images": [<file>, ...], "label": <file>}; correct it'
            )
        if len(names) - 1 != self.channels and not self._may_be_rgb(len(names) - 1):
            raise DataError(
                f"{table}: case {case!r} lists {len(names) - 1} images for {self.channels} "
                "channels; correct it"
            )
        for name in names:
            if "\0" in name or not name.endswith(self._described.ending):
                raise DataError(
                    f"{table}: case {case!r}: {name!r} is no file name that ends with "
                    f"{self._described.ending}; correct it"
                )
        *found, mask = (self.root / name for name in names)
        return found, mask

    def _ref(self, case: str, files: Files, role: str | None) -> CaseRef:
        """Return a case whose files are there, within the root.

        Raises:
            DataError: they are not, or the name tells no patient.
        """
        images, label = files
        problems = Problems()
        for path in (*images, label):
            with problems.gathered():
                self._check_place(path)
        with problems.gathered():
            patient = self._patient_of(case)
        problems.stop()
        return CaseRef(patient, case, (*images, label), role)

    def _check_place(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path}: not found; restore it or remove the case")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(
                f"{path}: lies outside of {self.root} ({path.resolve()}); copy it into the folder"
            )

    def _patient_of(self, case: str) -> str:
        if self.patient is None:
            return case
        match = self.patient.fullmatch(case)
        if match is None or not match[1]:
            raise DataError(
                f"{self.root}: case {case!r} does not match the pattern {self.patient.pattern!r}; "
                "correct dataset.patient"
            )
        return str(match[1])

    def _read_volumes(self, images: Sequence[Path], label: Path) -> Case:
        problems = Problems()
        volumes = []
        for path in (*images, label):
            with problems.gathered():
                volumes.append(read_nifti(path, self.plane))
        problems.stop()
        first = volumes[0]
        for path, other in zip((*images, label), volumes, strict=True):
            with problems.gathered():
                check_same_grid(first, other, (images[0], path))
        with problems.gathered():
            mask = map_labels(label, volumes[-1].voxels, self._meaning)
        problems.stop()
        image = _stacked([volume.voxels for volume in volumes[:-1]])
        return Case(image, mask, first.spacing, first.affine, self.window)

    def _read_pictures(self, images: Sequence[Path], label: Path) -> Case:
        colour = len(images) < self.channels
        modes = RGB if colour else (*GREY8, *GREY16)
        problems = Problems()
        pixels = []
        for path in images:
            with problems.gathered():
                pixels.append(read_picture(path, modes))
        with problems.gathered():
            mask = map_labels(label, read_picture(label, (*GREY8, *GREY16)), self._meaning)
        problems.stop()
        height, width = pixels[0].shape[:2]
        for path, other in zip((*images, label), (*pixels, mask), strict=True):
            if other.shape[:2] != (height, width):
                problems.found.append(
                    f"{path}: {shape_text(other.shape[:2])} pixels, but {images[0].name} has "
                    f"{shape_text((height, width))}; restore the pair or exclude the case"
                )
        problems.stop()
        image = pixels[0] if colour else _stacked(pixels)
        window = (0.0, 255.0) if colour and self.window is None else self.window
        return Case(image[None], mask[None], spacing=None, window=window)


def parse_description(path: Path, content: Any) -> Description:  # noqa: ANN401
    """Check the content of a dataset.json.

    Raises:
        DataError: something is missing, of another type, contradictory or not supported.
    """
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
        raise DataError(
            *(
                f"{path}: {key} is missing or no {'text' if REQUIRED[key] is str else 'object'}; "
                "correct it"
                for key in wrong
            )
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
    if not names or sorted(names) != sorted(map(str, range(len(names)))):
        raise DataError(
            f"{path}: channel_names has keys {', '.join(names)[:80]!r}, not 0, 1, ...; correct it"
        )
    return tuple(str(names[str(number)]) for number in range(len(names)))


def _regions(path: Path, labels: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Return the label values of each foreground class, and whether they are regions."""
    if "ignore" in labels:
        raise DataError(f"{path}: the label 'ignore' is not supported; relabel those voxels")
    overlapping = any(isinstance(value, list) for value in labels.values())
    problems = Problems()
    regions: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        values = tuple(value) if isinstance(value, list) else (value,)
        # `type`, because true and false are whole numbers to isinstance.
        if not values or any(type(v) is not int or v < 0 for v in values):
            problems.found.append(
                f"{path}: label {name!r} is {json.dumps(value)[:40]}, not a whole number from 0 "
                "or a list of them; correct it"
            )
        elif (name == "background") != (0 in values) or (0 in values and len(values) > 1):
            problems.found.append(
                f"{path}: label {name!r} is {json.dumps(value)[:40]}; background, and it alone, "
                "is 0"
            )
        elif len(set(values)) < len(values) or set(values) in map(set, regions.values()):
            problems.found.append(
                f"{path}: label {name!r} is {json.dumps(value)[:40]}, a value that comes twice; "
                "correct it"
            )
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, of which Python would keep the last of equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} appears twice")
    return content


def _one_group(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient {pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(
            f"patient {pattern!r} has {compiled.groups} groups; put one pair of brackets around "
            "the patient's part"
        )
    return compiled


def _stacked(channels: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return channels as the last axis, of a type that holds the values of all."""
    types = {channel.dtype for channel in channels}
    same_kind = len({dtype.kind for dtype in types}) == 1
    return np.stack(channels, -1, dtype=np.result_type(*types) if same_kind else np.float32)
