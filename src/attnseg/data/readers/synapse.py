"""Reader of the Synapse abdomen (BTCV, syn3193805): CT scans with 8 or 13 organs.

It reads two layouts. One is the download (https://www.synapse.org/Synapse:syn3193805):

    RawData/Training/img/img0001.nii.gz
    RawData/Training/label/label0001.nii.gz       numbers as in `ORGANS`, from 1

The other is the preprocessed package of TransUNet (https://github.com/Beckschen/TransUNet), which
later papers use, too. Its intensities are clipped to -125..275 HU and scaled to 0..1, its labels
are the eight of `ORDERS["transunet"]`, and it has no voxel sizes:

    train_npz/case0005_slice000.npz               image and label of a slice
    test_vol_h5/case0008.npy.h5                   image and label of a scan, slices first
"""

import logging
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from attnseg.data.labels import Labels
from attnseg.data.reader import Case, CaseRef, Reader, shape_text
from attnseg.data.readers.nifti import MAX_VOXELS, map_labels, read_labelled
from attnseg.errors import DataError, Problems

log = logging.getLogger(__name__)

ORGANS = (
    "spleen", "right_kidney", "left_kidney", "gallbladder", "oesophagus", "liver", "stomach",
    "aorta", "inferior_vena_cava", "portal_and_splenic_vein", "pancreas", "right_adrenal",
    "left_adrenal",
)  # fmt: skip
# Papers report eight organs in one of two orders: TransUNet's
# (https://github.com/Beckschen/TransUNet) or that of https://github.com/SLDGroup/CASCADE.
ORDERS = {
    "transunet": (
        "aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen",
        "stomach",
    ),
    "cascade": (
        "spleen", "right_kidney", "left_kidney", "gallbladder", "liver", "stomach", "aorta",
        "pancreas",
    ),
}  # fmt: skip
PACKAGE_FOLDERS = ("train_npz", "test_vol_h5")
SLICE_NAME = re.compile(r"(case\d{4})_slice(\d+)\.npz")
VOLUME_NAME = re.compile(r"(case\d{4})\.npy\.h5")
RAW_NAMES = {
    "img": re.compile(r"img(\d{4})\.nii\.gz"),
    "label": re.compile(r"label(\d{4})\.nii\.gz"),
}
MAX_SLICE = 1 << 28  # largest size of a slice's file when unpacked, bytes
SCALE_TOLERANCE = 1e-3  # distance by which intensities may leave 0..1
ARCHIVE_ERRORS = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error,
    MemoryError,
)  # fmt: skip


class Synapse(Reader):
    """Reads each scan as a case and a patient, both named `case0001`.

    Scans of the download are reoriented as in `Case`; those of the package keep their orientation,
    as in the papers. The package has separate training and test cases, the download has not.

    Args:
        root: folder that holds `RawData` (or `RawData` itself, or `Training`), or the folders of
            the package.
        organs: 8 or 13; the package has only 8.
        order: order of the eight classes, one of `ORDERS`.
        window: Hounsfield units that are scaled to 0 and 1, for the download.

    Raises:
        ValueError: the number of organs or the order is unknown, or the window is empty.
    """

    channels = 1

    def __init__(
        self,
        root: str | Path,
        organs: int = 8,
        order: str = "transunet",
        window: tuple[float, float] = (-125.0, 275.0),
    ) -> None:
        if organs not in (8, 13):
            raise ValueError(f"organs is {organs}; choose 8 or 13")
        if order not in ORDERS:
            raise ValueError(f"no order {order!r}; choose one of {', '.join(ORDERS)}")
        if not window[0] < window[1]:
            raise ValueError(f"window {window[0]:g} to {window[1]:g} is empty; give low, high")
        self.root = Path(root)
        self.labels = Labels(ORDERS[order] if organs == 8 else ORGANS)
        self.window = (float(window[0]), float(window[1]))

    @property
    def values(self) -> tuple[int, ...]:  # type: ignore[override]
        """The number of each organ in the label files of the layout."""
        organs = ORDERS["transunet"] if self._is_packed() else ORGANS
        return tuple(organs.index(name) + 1 for name in self.classes)

    def cases(self) -> list[CaseRef]:
        """List the scans of either layout by number; see `Reader.cases`."""
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; set dataset.root to the folder that holds RawData, "
                "or train_npz and test_vol_h5"
            )
        packed = self._is_packed()
        places = (self.root / "RawData" / "Training", self.root / "Training", self.root)
        raw = [place for place in places if any((place / name).is_dir() for name in RAW_NAMES)]
        if packed and raw:
            raise DataError(
                f"{self.root}: holds the download and the preprocessed package; "
                "keep each in a folder of its own"
            )
        if packed:
            return self._package_cases()
        if raw:
            return _raw_cases(raw[0])
        raise DataError(
            f"{self.root}: no Synapse data; expected RawData/Training/img and label, "
            "or train_npz and test_vol_h5"
        )

    def read(self, ref: CaseRef) -> Case:
        """Decode one scan; see `Reader.read`."""
        if ref.files[0].name.endswith(".nii.gz"):
            image_path, label_path = ref.files
            new_value = _class_of_label(ORGANS, self.classes)
            return read_labelled([image_path], label_path, new_value, window=self.window)
        new_value = _class_of_label(ORDERS["transunet"], self.classes)
        read = _read_slices if ref.files[0].suffix == ".npz" else _read_volume
        image, mask = read(ref, new_value)
        return Case(image[..., None], mask, spacing=None, window=(0.0, 1.0))

    def _is_packed(self) -> bool:
        return any((self.root / name).is_dir() for name in PACKAGE_FOLDERS)

    def _package_cases(self) -> list[CaseRef]:
        """List the cases of the preprocessed package."""
        train, test = (self.root / name for name in PACKAGE_FOLDERS)
        for folder in (train, test):
            if not folder.is_dir():
                raise DataError(f"{folder}: not found; unpack the whole package")
        if len(self.classes) > 8:
            raise DataError(
                f"{self.root}: the preprocessed package has 8 organs, not {len(self.classes)}; "
                "set dataset.organs=8 or use the download"
            )
        problems = Problems()
        slices: dict[str, list[tuple[int, Path]]] = defaultdict(list)
        for name, path in _match_names(train, ".npz", SLICE_NAME, problems):
            slices[name[1]].append((int(name[2]), path))
        volumes = {name[1]: p for name, p in _match_names(test, ".h5", VOLUME_NAME, problems)}
        refs = []
        for case in sorted(slices):
            if case in volumes:
                problems.found.append(
                    f"{volumes[case]}: {case} is in {train.name}, too; remove one"
                )
            with problems.gathered():
                refs.append(CaseRef(case, case, _order_slices(case, slices[case]), "train"))
        refs += [CaseRef(case, case, (volumes[case],), "test") for case in sorted(volumes)]
        for folder, cases in ((train, slices), (test, volumes)):
            if not cases:
                problems.found.append(f"{folder}: no cases found; unpack the whole package")
        problems.stop()
        return refs


def _class_of_label(organs: tuple[str, ...], classes: tuple[str, ...]) -> dict[int, int]:
    """Return the class, counted from 1, of each label of `organs`; 0 if it is not a class."""
    numbers = {name: number for number, name in enumerate(classes, 1)}
    return {0: 0} | {label: numbers.get(name, 0) for label, name in enumerate(organs, 1)}


def _match_names(
    folder: Path, ending: str, pattern: re.Pattern[str], problems: Problems
) -> Iterable[tuple[re.Match[str], Path]]:
    """Return a folder's files of this ending with the match of their names; report the others."""
    matches = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(ending):
            continue
        if (match := pattern.fullmatch(path.name)) is None:
            problems.found.append(f"{path}: not a name of this data set; rename or remove it")
        elif not path.is_file():
            problems.found.append(f"{path}: not a file; restore it")
        else:
            matches.append((match, path))
    return matches


def _raw_cases(training: Path) -> list[CaseRef]:
    """List the cases of the download's training folder."""
    for name in RAW_NAMES:
        if not (training / name).is_dir():
            raise DataError(f"{training / name}: not found; unpack the whole download")
    problems = Problems()
    images, labels = (
        {match[1]: p for match, p in _match_names(training / kind, ".nii.gz", pattern, problems)}
        for kind, pattern in RAW_NAMES.items()
    )
    for number in sorted(images.keys() ^ labels.keys()):
        path, missing = (images[number], "label") if number in images else (labels[number], "img")
        problems.found.append(f"{path}: no {missing}{number}.nii.gz; restore the pair")
    if not images and not labels:
        problems.found.append(f"{training}: no cases found; expected img/img0001.nii.gz")
    problems.stop()
    return [CaseRef(f"case{n}", f"case{n}", (images[n], labels[n])) for n in sorted(images)]


def _order_slices(case: str, slices: list[tuple[int, Path]]) -> tuple[Path, ...]:
    """Return the files of a case's slices in the order of their numbers, which must differ."""
    slices = sorted(slices)
    problems = Problems()
    problems.found.extend(
        f"{other}: slice {number} of {case} is {path.name}, too; keep one file"
        for (number, path), (following, other) in pairwise(slices)
        if number == following
    )
    problems.stop()
    return tuple(path for _, path in slices)


def _read_slices(
    ref: CaseRef, new_value: dict[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return image and mask `[S, H, W]` of a training case of the package."""
    numbers = [int(match[2]) for path in ref.files if (match := SLICE_NAME.fullmatch(path.name))]
    for number, following in pairwise(numbers):
        if number + 1 < following:
            log.warning("%s: no slice between %d and %d", ref.case, number, following)
    problems = Problems()
    images: list[NDArray[np.float32]] = []
    masks: list[NDArray[np.uint8]] = []
    for path in ref.files:
        with problems.gathered():
            image, mask = _check_arrays(path, _load_npz(path), 2, new_value)
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{path}: {shape_text(image.shape)} pixels, unlike the case's first slice "
                    f"({shape_text(images[0].shape)}), {ref.files[0].name}; restore the wrong one"
                )
            images.append(image)
            masks.append(mask)
    problems.stop()
    return np.stack(images), np.stack(masks)


def _read_volume(
    ref: CaseRef, new_value: dict[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return image and mask `[S, H, W]` of a test case of the package."""
    path = ref.files[0]
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: _read_array(file, name) for name in ("image", "label")}
    except (*ARCHIVE_ERRORS, TypeError) as error:
        raise _archive_error(path, "HDF5", error) from error
    return _check_arrays(path, arrays, 3, new_value)


def _read_array(file: h5py.File, name: str) -> NDArray[Any]:
    """Return an array that lies in the file itself and has at most `MAX_VOXELS` voxels."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual:
        raise ValueError(f"{name} is no array of this file")
    if array.size > MAX_VOXELS:
        raise ValueError(f"{name} has {shape_text(array.shape)} voxels, too many")
    return np.asarray(array)


def _load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return image and label of a slice's file, unless it unpacks to more than `MAX_SLICE`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            unpacked = sum(member.file_size for member in file.zip.infolist())
            if unpacked > MAX_SLICE:
                raise ValueError(f"unpacks to {unpacked / 1e6:.0f} MB")
            return {name: file[name] for name in ("image", "label")}
    except (*ARCHIVE_ERRORS, TypeError, AttributeError) as error:
        raise _archive_error(path, "NPZ", error) from error


def _archive_error(path: Path, kind: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path}: not an {kind} file of image and label ({reason}); restore it")


def _check_arrays(
    path: Path, arrays: dict[str, NDArray[Any]], dimensions: int, new_value: dict[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return image and mask, once the package's arrays have valid types, shapes and values."""
    image, label = arrays["image"], arrays["label"]
    if image.dtype.kind not in "buif" or label.dtype.kind not in "buif":
        raise DataError(f"{path}: arrays of {image.dtype} and {label.dtype}; restore the file")
    if image.shape != label.shape or image.ndim != dimensions or not image.size:
        raise DataError(
            f"{path}: an image of {shape_text(image.shape)} and a label of "
            f"{shape_text(label.shape)} voxels, not two alike of {dimensions} dimensions; "
            "restore the file"
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= -SCALE_TOLERANCE and high <= 1 + SCALE_TOLERANCE):
        raise DataError(
            f"{path}: intensities from {low:g} to {high:g}, not 0 to 1 as in the package; "
            "restore the file"
        )
    return np.asarray(image, np.float32), map_labels(path, label, new_value)
