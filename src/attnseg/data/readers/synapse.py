"""Reader of the Synapse abdomen (BTCV, syn3193805): CT scans, 8 or 13 organs.

Two layouts on disk. The download (https://www.synapse.org/Synapse:syn3193805):

    RawData/Training/img/img0001.nii.gz
    RawData/Training/label/label0001.nii.gz       numbers as in `ORGANS`, from 1

and the preprocessed package of TransUNet (https://github.com/Beckschen/TransUNet), which later
papers use, too; its intensities are clipped to -125..275 HU and scaled to 0..1, its labels are the
eight of `ORDERS["transunet"]`, and it knows no voxel size:

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
from attnseg.data.readers.nifti import MAX_VOXELS, check_same_grid, map_labels, read_nifti
from attnseg.errors import DataError, Problems

log = logging.getLogger(__name__)

ORGANS = (
    "spleen", "right_kidney", "left_kidney", "gallbladder", "oesophagus", "liver", "stomach",
    "aorta", "inferior_vena_cava", "portal_and_splenic_vein", "pancreas", "right_adrenal",
    "left_adrenal",
)  # fmt: skip
# The eight organs of the papers, in the two orders in use: TransUNet's
# (https://github.com/Beckschen/TransUNet) and that of https://github.com/SLDGroup/CASCADE.
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
MAX_SLICE = 1 << 28  # bytes of a slice's file when unpacked
SCALED = 1e-3  # by which intensities may leave 0..1
ARCHIVE_ERRORS = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error,
    MemoryError,
)  # fmt: skip


class Synapse(Reader):
    """A scan is a case and a patient: `case0001`.

    The package's arrays keep their orientation, as the papers feed them; only the download is
    turned to the one of `Case`. The package says which cases are for training and which for
    testing, the download does not.

    Args:
        root: folder that holds `RawData` (or is it, or its `Training`), or the package's folders.
        organs: 8 or 13; the package has 8 only.
        order: of the eight classes, one of `ORDERS`.
        window: Hounsfield units that become 0 and 1, for the download.

    Raises:
        ValueError: no such number of organs or order, or an empty window.
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

    def cases(self) -> list[CaseRef]:
        """List the scans by number, of whichever layout is there; see `Reader.cases`."""
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; set dataset.root to the folder that holds RawData, "
                "or train_npz and test_vol_h5"
            )
        packed = any((self.root / name).is_dir() for name in PACKAGE_FOLDERS)
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
            return self._read_raw(*ref.files)
        meaning = _meaning(ORDERS["transunet"], self.classes)
        read = _read_slices if ref.files[0].suffix == ".npz" else _read_volume
        image, mask = read(ref, meaning)
        return Case(image[..., None], mask, spacing=None, window=(0.0, 1.0))

    def _package_cases(self) -> list[CaseRef]:
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
        slices = _numbered(train, ".npz", SLICE_NAME, problems)
        volumes = _numbered(test, ".h5", VOLUME_NAME, problems)
        found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
        for name, path in slices:
            found[name[1]].append((int(name[2]), path))
        tests = {name[1]: path for name, path in volumes}
        refs = []
        for case in sorted(found):
            if case in tests:
                problems.found.append(f"{tests[case]}: {case} is in {train.name}, too; remove one")
            with problems.gathered():
                refs.append(CaseRef(case, case, _in_order(case, found[case]), "train"))
        refs += [CaseRef(case, case, (tests[case],), "test") for case in sorted(tests)]
        for folder, names in ((train, found), (test, tests)):
            if not names:
                problems.found.append(f"{folder}: no cases found; unpack the whole package")
        problems.stop()
        return refs

    def _read_raw(self, image_path: Path, label_path: Path) -> Case:
        problems = Problems()
        volumes = []
        for path in (image_path, label_path):
            with problems.gathered():
                volumes.append(read_nifti(path))
        problems.stop()
        image, label = volumes
        with problems.gathered():
            check_same_grid(image, label, (image_path, label_path))
        with problems.gathered():
            mask = map_labels(label_path, label.voxels, _meaning(ORGANS, self.classes))
        problems.stop()
        return Case(image.voxels[..., None], mask, image.spacing, image.affine, self.window)


def _meaning(on_disk: tuple[str, ...], wanted: tuple[str, ...]) -> dict[int, int]:
    """Return the class index of each label: 0 for organs that are not wanted."""
    organs = enumerate(on_disk, 1)
    return {0: 0} | {n: wanted.index(name) + 1 if name in wanted else 0 for n, name in organs}


def _numbered(
    folder: Path, ending: str, pattern: re.Pattern[str], problems: Problems
) -> Iterable[tuple[re.Match[str], Path]]:
    """Return a folder's files of this ending with what their names say; keep other names."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(ending):
            continue
        if (match := pattern.fullmatch(path.name)) is None:
            problems.found.append(f"{path}: not a name of this data set; rename or remove it")
        elif not path.is_file():
            problems.found.append(f"{path}: not a file; restore it")
        else:
            found.append((match, path))
    return found


def _raw_cases(training: Path) -> list[CaseRef]:
    """List the cases of the download's training folder."""
    for name in RAW_NAMES:
        if not (training / name).is_dir():
            raise DataError(f"{training / name}: not found; unpack the whole download")
    problems = Problems()
    images, labels = (
        {name[1]: path for name, path in _numbered(training / kind, ".nii.gz", pattern, problems)}
        for kind, pattern in RAW_NAMES.items()
    )
    for number in sorted(images.keys() ^ labels.keys()):
        if number in images:
            problems.found.append(f"{images[number]}: no label{number}.nii.gz; restore the pair")
        else:
            problems.found.append(f"{labels[number]}: no img{number}.nii.gz; restore the pair")
    if not images and not labels:
        problems.found.append(f"{training}: no cases found; expected img/img0001.nii.gz")
    problems.stop()
    return [CaseRef(f"case{n}", f"case{n}", (images[n], labels[n])) for n in sorted(images)]


def _in_order(case: str, slices: list[tuple[int, Path]]) -> tuple[Path, ...]:
    """Return a case's slices by number.

    Raises:
        DataError: a number comes twice.
    """
    slices = sorted(slices)
    twice = []
    for (number, path), (following, other) in pairwise(slices):
        if number == following:
            twice.append(f"{other}: slice {number} of {case} is {path.name}, too; keep one file")
    if twice:
        raise DataError(*twice)
    return tuple(path for _, path in slices)


def _read_slices(
    ref: CaseRef, meaning: dict[int, int]
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
            image, mask = _checked(path, _load_npz(path), 2, meaning)
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{path}: {shape_text(image.shape)} pixels, unlike the case's first slice "
                    f"({shape_text(images[0].shape)}); restore the file"
                )
            images.append(image)
            masks.append(mask)
    problems.stop()
    return np.stack(images), np.stack(masks)


def _read_volume(
    ref: CaseRef, meaning: dict[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return image and mask `[S, H, W]` of a test case of the package."""
    path = ref.files[0]
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: _array(file, name) for name in ("image", "label")}
    except (*ARCHIVE_ERRORS, TypeError) as error:
        raise _archive_error(path, "HDF5", error) from error
    return _checked(path, arrays, 3, meaning)


def _array(file: h5py.File, name: str) -> NDArray[Any]:
    """Return an array that is in the file itself and of a size that a scan may have.

    Raises:
        ValueError: it is somewhere else, or too large.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ValueError(f"{name} is no array of this file")
    if found.size > MAX_VOXELS:
        raise ValueError(f"{name} has {shape_text(found.shape)} voxels, too many")
    return np.asarray(found)


def _load_npz(path: Path) -> dict[str, NDArray[Any]]:
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


def _checked(
    path: Path, arrays: dict[str, NDArray[Any]], dimensions: int, meaning: dict[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return image and mask of the package's arrays once they are what they should be."""
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
    if not (low >= -SCALED and high <= 1 + SCALED):
        raise DataError(
            f"{path}: intensities from {low:g} to {high:g}, not 0 to 1 as in the package; "
            "restore the file"
        )
    return np.asarray(image, np.float32), map_labels(path, label, meaning)
