"""Reader of any dataset in nnU-Net's raw format, or of a task of the Decathlon as downloaded.

Layout (https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md):

    dataset.json                        channel_names, labels, file_ending
    imagesTr/liver_001_0000.nii.gz      first channel of a case; 0001 is the second
    labelsTr/liver_001.nii.gz           whole numbers, as listed in `labels`
    imagesTs/, labelsTs/                likewise, for the test

Instead of `imagesTr` and `labelsTr`, the key `dataset` of dataset.json may list each case's files.
A task of the Medical Segmentation Decathlon (http://medicaldecathlon.com) lists them under
`training`, and keeps all channels in one file.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from attnseg.data.folders import (
    compile_patient_pattern,
    find_ending,
    list_by_name,
    warn_of_groups,
)
from attnseg.data.labels import Labels, number_values
from attnseg.data.reader import Case, CaseRef, Reader, shape_text
from attnseg.data.readers.nifti import ENDINGS as VOLUME_ENDINGS
from attnseg.data.readers.nifti import (
    PLANES,
    list_nifti_files,
    map_labels,
    read_labelled,
    stack_channels,
)
from attnseg.data.readers.nnunet_json import PICTURE_ENDINGS, Description, read_description
from attnseg.data.readers.pictures import GREY8, GREY16, RGB, read_label_picture, read_picture
from attnseg.errors import DataError, Problems, join_names

log = logging.getLogger(__name__)

CaseFiles = tuple[list[Path], Path]  # the files of the channels, and the label file


class NNUNet(Reader):
    """Reads each scan or picture as a case.

    Classes are the labels of dataset.json in the order of their values. If any of them is a list of
    values, classes are regions in the order written, which may overlap. A label named `ignore`
    marks voxels that neither losses nor metrics count. Cases of `imagesTs` with labels are test
    cases. An RGB picture provides three channels.

    Args:
        root: folder that holds `dataset.json`.
        plane: plane of the slices of volumes: axial, coronal or sagittal.
        window: intensities that are scaled to 0 and 1. By default these are 0 and 255 for 8-bit RGB
            pictures, and otherwise percentiles of each case.
        patient: regular expression that must match the whole name of a case; its only group is the
            patient. By default each case is a patient of its own.

    Raises:
        ValueError: the plane is unknown, the window is empty, or the regular expression is invalid
            or does not have exactly one group.
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
        self.patient = None if patient is None else compile_patient_pattern(patient)

    @cached_property
    def labels(self) -> Labels:  # type: ignore[override]
        """The foreground classes; they overlap if they are regions."""
        described = self._described
        return Labels(tuple(described.regions), described.overlapping, described.ignore is not None)

    @cached_property
    def values(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """The value of each label; `None` for regions."""
        described = self._described
        return None if described.overlapping else tuple(v for (v,) in described.regions.values())

    @cached_property
    def channels(self) -> int:  # type: ignore[override]
        """Number of channels."""
        return len(self._described.channels)

    @cached_property
    def volumetric(self) -> bool:  # type: ignore[override]
        """Whether files are volumes."""
        return self._described.ending in VOLUME_ENDINGS

    def cases(self) -> list[CaseRef]:
        """List the cases by name, test cases last; see `Reader.cases`."""
        problems = Problems()
        if (listed := self._described.listed) is None:
            train = self._find_files("Tr", problems)
        else:
            train = {}
            for case, entry in listed.items():
                with problems.gathered():
                    train[case] = self._check_entry(case, entry)
        if (self.root / "labelsTs").is_dir():
            test = self._find_files("Ts", problems)
        else:
            test = {}
            self._count_unlabelled()
        for case in sorted(train.keys() & test.keys()):
            problems.found.append(
                f"{test[case][1]}: {case} is for training, too; remove the case here or there"
            )
        refs = []
        for files, role in ((train, None), (test, "test")):
            for case in sorted(files):
                with problems.gathered():
                    refs.append(self._refer_to(case, files[case], role))
        if not refs and not problems.found:
            problems.found.append(
                f"{self.root}: no cases found; expected imagesTr/<case>_0000"
                f"{self._described.ending} and labelsTr/<case>{self._described.ending}"
                f"{'' if listed is None else ', and no empty dataset in dataset.json'}"
            )
        problems.stop()
        for key, count in (("numTraining", len(train)), ("numTest", len(test))):
            stated = self._described.sizes.get(key, count)
            if stated != count and (key == "numTraining" or test):
                log.warning("%s: dataset.json says %s %d, found %d", self.root, key, stated, count)
        if self.patient is not None:
            warn_of_groups(self.patient.pattern, {ref.case: ref.patient for ref in refs})
        return refs

    def source(self, ref: CaseRef) -> str:
        """Return the new value of each label, which depends on dataset.json."""
        return json.dumps(self._new_value)

    def read(self, ref: CaseRef) -> Case:
        """Decode one case; see `Reader.read`."""
        *images, label = ref.files
        if self.volumetric:
            in_one_file = self.channels if len(images) < self.channels else 1
            return read_labelled(
                images, label, self._new_value, self.plane, self.window, in_one_file
            )
        return self._read_pictures(images, label)

    @cached_property
    def _described(self) -> Description:
        """Content of dataset.json, read once."""
        return read_description(self.root)

    @cached_property
    def _new_value(self) -> dict[int, int]:
        """Value in the dataset's label map of each value in the label files."""
        described = self._described
        return number_values(described.regions, described.overlapping, described.ignore)

    def _find_files(self, part: str, problems: Problems) -> dict[str, CaseFiles]:
        """Return the files of each case of `Tr` or `Ts`; add missing and surplus ones to problems.

        `_refer_to` checks that the label files exist.
        """
        images, labels = self.root / f"images{part}", self.root / f"labels{part}"
        for folder in (images, labels):
            if not folder.is_dir():
                problems.found.append(f"{folder}: not found; restore the folder")
                return {}
        channels: dict[str, dict[int, Path]] = defaultdict(dict)
        images_by_name = self._list_files(images, problems)
        for name, path in images_by_name.items():
            if match := re.fullmatch(r"(.+)_([0-9]{4})", name, re.DOTALL):
                channels[match[1]][int(match[2])] = path
            else:
                problems.found.append(
                    f"{path}: not named <case>_<channel>{self._described.ending} with a channel "
                    "of four digits; rename or remove it"
                )
        if not any(path.name.endswith(self._described.ending) for path in images_by_name.values()):
            return {}
        masks = self._list_files(labels, problems)
        for name in sorted(masks.keys() - channels.keys()):
            problems.found.append(f"{masks[name]}: no image in {images}; restore or remove it")
        files = {}
        for name in sorted(channels):
            with problems.gathered():
                label = masks.get(name, labels / f"{name}{self._described.ending}")
                files[name] = (self._order_channels(images / name, channels[name]), label)
        return files

    def _list_files(self, folder: Path, problems: Problems) -> dict[str, Path]:
        """Return a folder's volumes or pictures by their names without the ending."""
        endings = VOLUME_ENDINGS if self.volumetric else PICTURE_ENDINGS
        files = list_by_name(folder, endings, problems)
        ending = self._described.ending
        if others := [path.name for path in files.values() if not path.name.endswith(ending)]:
            log.warning(
                "%s: %d of %d files do not end with %s, as dataset.json says, and are read "
                "nevertheless: %s",
                folder, len(others), len(files), ending, join_names(others),
            )  # fmt: skip
        return files

    def _count_unlabelled(self) -> None:
        """Say how many files of `imagesTs` are left out, since they have no labels."""
        folder = self.root / "imagesTs"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        endings = VOLUME_ENDINGS + PICTURE_ENDINGS
        images = sorted(n for n in names if n[0] != "." and find_ending(n, endings))
        if images:
            log.info(
                "%s: %d files without labels, left out: %s",
                folder, len(images), join_names(images, 3),
            )  # fmt: skip

    def _order_channels(self, stem: Path, channels: dict[int, Path]) -> list[Path]:
        """Return the files of a case's channels by number, or the one RGB picture."""
        rgb = set(channels) == {0} and self.channels == 3 and not self.volumetric
        expected = range(1 if rgb else self.channels)
        problems = Problems()
        for number in expected:
            if number not in channels:
                missing = f"{stem}_{number:04d}{self._described.ending}"
                problems.found.append(f"{missing}: not found; restore it or remove the case")
        for number, path in channels.items():
            if number not in expected:
                problems.found.append(
                    f"{path}: dataset.json names {self.channels} channels, counted from 0000; "
                    "correct it or remove the file"
                )
        problems.stop()
        return [channels[number] for number in expected]

    def _check_entry(self, case: str, entry: Any) -> CaseFiles:  # noqa: ANN401
        """Return the files of a case that dataset.json lists."""
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
        in_one_file = len(names) == 2 and (self.volumetric or self.channels == 3)
        if len(names) - 1 != self.channels and not in_one_file:
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
        *channels, mask = (self.root / name for name in names)
        return channels, mask

    def _refer_to(self, case: str, files: CaseFiles, role: str | None) -> CaseRef:
        """Return the reference of a case, once its files are known to exist within the root."""
        images, label = files
        problems = Problems()
        for path in (*images, label):
            for file in list_nifti_files(path):
                with problems.gathered():
                    self._check_inside_root(file)
        with problems.gathered():
            patient = self._patient_of(case)
        problems.stop()
        return CaseRef(patient, case, (*images, label), role)

    def _check_inside_root(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path}: not found; restore it or remove the case")
        if not any(path.resolve().is_relative_to(place) for place in self._places):
            raise DataError(
                f"{path}: lies outside of {self.root} ({path.resolve()}); copy it into the folder"
            )

    @cached_property
    def _places(self) -> tuple[Path, ...]:
        """The root and its folders, which may be links to another disk."""
        names = ("", "imagesTr", "labelsTr", "imagesTs", "labelsTs")
        return tuple((self.root / name).resolve() for name in names)

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

    def _read_pictures(self, images: Sequence[Path], label: Path) -> Case:
        colour = len(images) < self.channels
        modes = RGB if colour else (*GREY8, *GREY16)
        problems = Problems()
        pixels = []
        for path in images:
            with problems.gathered():
                pixels.append(read_picture(path, modes))
        with problems.gathered():
            mask = map_labels(label, read_label_picture(label)[0], self._new_value)
        problems.stop()
        height, width = pixels[0].shape[:2]
        for path, other in zip((*images, label), (*pixels, mask), strict=True):
            if other.shape[:2] != (height, width):
                problems.found.append(
                    f"{path}: {shape_text(other.shape[:2])} pixels, but {images[0].name} has "
                    f"{shape_text((height, width))}; restore the pair or exclude the case"
                )
        problems.stop()
        image = pixels[0] if colour else stack_channels(pixels)
        window = (0.0, 255.0) if colour and self.window is None else self.window
        return Case(image[None], mask[None], spacing=None, window=window)
