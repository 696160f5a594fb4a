"""The interface of a dataset: a reader lists its cases and decodes one at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnseg.data.labels import Labels
from attnseg.errors import DataError

DTYPES = ("uint8", "uint16", "int16", "float32")  # of stored images


@dataclass(frozen=True)
class CaseRef:
    """The patient and the files of a case that has not been decoded yet.

    Attributes:
        patient: name of the patient; all cases of a patient get the same role.
        case: name of the case, unique in the dataset.
        files: every file that the case is read from, within the dataset's root.
        role: `train`, `val` or `test`; `None` unless the dataset assigns roles itself.
    """

    patient: str
    case: str
    files: tuple[Path, ...]
    role: str | None = None


@dataclass(frozen=True)
class Case:
    """A decoded case: a scan of S slices, or a picture with S = 1.

    Axial scans have the orientation of radiology: slices run from the feet up, rows from front to
    back, columns from the patient's right to the left.

    Attributes:
        image: `[S, H, W, C]`, one of `DTYPES`, with the intensities of the file.
        mask: label map `[S, H, W]` (see `labels`).
        spacing: voxel size along S, H, W, mm; `None` if unknown.
        affine: `[4, 4]` from the voxel indices of the file to mm, as in NIfTI (x to the patient's
            right, y to the front, z up); `None` if the file has none.
        window: the intensities that are scaled to 0 and 1, if they are the same for all cases, as
            for Hounsfield units; `None` for percentiles of each case and channel.
    """

    image: NDArray[np.generic]
    mask: NDArray[np.uint8]
    spacing: tuple[float, float, float] | None
    affine: NDArray[np.float64] | None = None
    window: tuple[float, float] | None = None


class Reader:
    """Base class of the readers, the only code that knows a dataset's layout on disk.

    The constructor of a subclass takes `root` and then options of its own; prepared cases are kept
    apart for each combination of options. It reads nothing, because the root may not exist yet.

    Attributes:
        labels: the foreground classes, and whether they overlap.
        channels: number of channels of the image.
        volumetric: whether slices have neighbours; false for pictures.
        plane: plane of the slices of a volume.
        self_describing: whether classes and channels are read from the dataset's own files.
        values: the value of each class in the dataset's label files, which predicted masks have,
            too; `None` for 1, 2, ..., and where classes overlap.
    """

    labels: Labels
    channels: int
    volumetric: bool = True
    plane: str = "axial"
    self_describing: bool = False
    values: tuple[int, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the foreground classes."""
        return self.labels.names

    def cases(self) -> list[CaseRef]:
        """List the cases in a fixed order, from file names and tables only.

        Raises:
            DataError: files or folders are not laid out as documented; lists every problem.
        """
        raise NotImplementedError

    def source(self, ref: CaseRef) -> str:
        """Return all that decides a case's content besides its files, such as rows of a table."""
        return ""

    def read(self, ref: CaseRef) -> Case:
        """Decode and validate one case.

        Raises:
            DataError: files are missing, broken or contradict each other; lists every problem.
        """
        raise NotImplementedError


def check_case(case: Case, ref: CaseRef, reader: Reader) -> None:
    """Refuse a decoded case that cannot be trained on or scored, whatever its dataset."""
    place = ref.files[0] if ref.files else ref.case
    image, mask = case.image, case.mask
    if image.ndim != 4 or image.shape[:3] != mask.shape:
        raise DataError(
            f"{place}: an image of {shape_text(image.shape[:3])} and a mask of "
            f"{shape_text(mask.shape)} voxels; restore the pair or exclude the case"
        )
    if min(image.shape[1:3]) < 2 or image.shape[0] < 1:
        raise DataError(
            f"{place}: {shape_text(image.shape[:3])} voxels are no picture; exclude the case"
        )
    if image.shape[3] != reader.channels:
        raise DataError(
            f"{place}: {image.shape[3]} channels instead of {reader.channels}; "
            "restore the file or exclude the case"
        )
    if image.dtype.name not in DTYPES:
        raise TypeError(f"a reader returned {image.dtype}; one of {', '.join(DTYPES)} is allowed")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError(
            f"{place}: NaN or infinite intensities; repair the file or exclude the case"
        )
    ignored = reader.labels.find_ignored(mask)
    largest = mask.max(initial=0, where=True if ignored is None else ~ignored)
    if largest > reader.labels.largest_value:
        raise DataError(
            f"{place}: the mask holds {largest}, but there are {len(reader.labels)} classes; "
            "correct the mask or the dataset's options"
        )


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as text, such as `8x60x72`."""
    return "x".join(map(str, shape))
