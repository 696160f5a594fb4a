"""Decoding of NIfTI volumes, with checks and reorientation to one order of axes."""

import contextlib
import gzip
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.orientations import (
    OrientationError,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from attnseg.data.reader import Case, shape_text
from attnseg.errors import DataError, Problems

log = logging.getLogger(__name__)

# Axes of an LPS volume (0 for x, 1 for y, 2 for z) along slices, rows and columns.
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
LPS = axcodes2ornt(("L", "P", "S"))
MAX_VOXELS = 1 << 31
LARGEST = float(np.finfo(np.float32).max)
SHEAR = 0.02  # largest cosine between axes that count as perpendicular
SHIFT = 0.1  # largest distance between the grids of two files, share of a voxel
NIFTI_ERRORS = (
    ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class NiftiVolume:
    """A decoded volume.

    Attributes:
        voxels: `[S, H, W]`, or `[S, H, W, C]` if there are several channels; oriented as in `Case`.
        spacing: voxel size along S, H, W, mm.
        affine: affine `[4, 4]` of the file (see `Case`).
        shape: shape of the file's array without channels.
    """

    voxels: NDArray[Any]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    shape: tuple[int, ...]


def read_nifti(path: Path, plane: str = "axial", channels: int = 1) -> NiftiVolume:
    """Decode a `.nii` or `.nii.gz` file.

    Args:
        path: the file.
        plane: plane of the slices, one of `PLANES`.
        channels: number of channels along the file's last axis; 1 for a file without that axis.

    Returns:
        Voxels of type uint8, uint16 or int16, if that holds the values exactly; otherwise float32.

    Raises:
        DataError: the file is broken, has other dimensions or channels, has no usable geometry, or
            holds values that are not finite in float32.
    """
    try:
        with _log_header_repairs(path):
            image: Any = nib.load(path)
        shape = tuple(map(int, image.shape))
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) == 5 and shape[3] == 1:  # NIfTI stores vectors along the fifth axis.
            shape = (*shape[:3], shape[4])
        if len(shape) == 4 and channels > 1 and shape[3] != channels:
            raise DataError(
                f"{path}: {shape[3]} channels instead of {channels}; give those that were "
                "trained on"
            )
        if len(shape) != (3 if channels == 1 else 4) or min(shape) < 1:
            expected = "" if channels == 1 else f" and {channels} channels"
            raise DataError(
                f"{path}: {shape_text(shape)} voxels, not a volume of three dimensions{expected}; "
                "split it or exclude the case"
            )
        if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
            raise DataError(
                f"{path}: {shape_text(shape)} voxels are too many; crop or exclude the case"
            )
        affine = np.asarray(image.affine, np.float64)
        check_axes(path, affine)
        _check_sizes(path, image)
        voxels = np.asanyarray(image.dataobj).reshape(shape)
        _check_sum(path)
    except NIFTI_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a readable NIfTI file ({reason}); restore it") from error
    if voxels.dtype.kind not in "buif":
        raise DataError(f"{path}: voxels of type {voxels.dtype}; convert them to numbers")
    # Comparisons with NaN are false, so that this refuses NaN, too.
    if voxels.dtype.kind == "f" and not -LARGEST <= voxels.min() <= voxels.max() <= LARGEST:
        raise DataError(
            f"{path}: NaN or infinite voxels, or beyond {LARGEST:.1e}; repair the file or exclude "
            "the case"
        )
    slices, spacing = to_slices(voxels, affine, plane)
    return NiftiVolume(to_smallest_dtype(slices), spacing, affine, shape[:3])


def read_labelled(
    images: Sequence[Path],
    label: Path,
    new_value: Mapping[int, int],
    plane: str = "axial",
    window: tuple[float, float] | None = None,
    channels: int = 1,
) -> Case:
    """Decode a case from the files of its channels and its label file (see `map_labels`).

    With `channels` above 1, one file holds all of them.

    Raises:
        DataError: files are broken or contradict each other; lists every problem.
    """
    paths = (*images, label)
    problems = Problems()
    volumes = []
    for path in paths:
        with problems.gathered():
            volumes.append(read_nifti(path, plane, 1 if path == label else channels))
    problems.stop()
    first = volumes[0]
    for path, volume in zip(paths, volumes, strict=True):
        with problems.gathered():
            check_same_grid(first, volume, (paths[0], path))
    with problems.gathered():
        mask = map_labels(label, volumes[-1].voxels, new_value)
    problems.stop()
    each = [volume.voxels for volume in volumes[:-1]]
    image = stack_channels(each) if channels == 1 else each[0]
    return Case(image, mask, first.spacing, first.affine, window)


def stack_channels(channels: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stack channels along a new last axis, in a type that holds the values of all."""
    types = {channel.dtype for channel in channels}
    same_kind = len({dtype.kind for dtype in types}) == 1
    return np.stack(channels, -1, dtype=np.result_type(*types) if same_kind else np.float32)


@contextlib.contextmanager
def _log_header_repairs(path: Path) -> Iterator[None]:
    """Log nibabel's warnings on invalid header fields, which lack the file's name, with it."""

    def log_with_path(record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR:  # Nibabel raises errors besides logging them.
            log.warning("%s: %s", path, record.getMessage())
        return False

    nib.imageglobals.logger.addFilter(log_with_path)
    try:
        yield
    finally:
        nib.imageglobals.logger.removeFilter(log_with_path)


def to_slices(
    voxels: NDArray[Any], affine: NDArray[np.float64], plane: str
) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Reorient a volume from the axes of its file to slices as in `Case`.

    The first three axes of `voxels` are those of the affine, which must have been checked.

    Returns:
        A view `[S, H, W, ...]` of the voxels, and the voxel size along S, H, W, mm.
    """
    to_lps = ornt_transform(io_orientation(affine), LPS)
    lps = nib.orientations.apply_orientation(voxels, to_lps)
    sizes = np.linalg.norm((affine @ inv_ornt_aff(to_lps, voxels.shape[:3]))[:3, :3], axis=0)
    axes = PLANES[plane]
    first, second, third = (float(sizes[axis]) for axis in axes)
    return lps.transpose(*axes, *range(3, voxels.ndim)), (first, second, third)


def from_slices(slices: NDArray[Any], affine: NDArray[np.float64], plane: str) -> NDArray[Any]:
    """Reorient slices to the axes of the file: the inverse of `to_slices`."""
    lps = slices.transpose(*np.argsort(PLANES[plane]), *range(3, slices.ndim))
    to_file = ornt_transform(LPS, io_orientation(affine))
    return np.asarray(nib.orientations.apply_orientation(lps, to_file))


def check_same_grid(first: NiftiVolume, second: NiftiVolume, paths: tuple[Path, Path]) -> None:
    """Refuse volumes that do not lie at the same place, however their files order the axes.

    Raises:
        DataError: the shapes differ, or a corner differs by more than `SHIFT` voxels.
    """
    (affine, shape), (other, other_shape) = map(_turn_grid, (first, second))
    if shape != other_shape:
        raise DataError(
            f"{paths[1]}: {shape_text(second.shape)} voxels, but {paths[0].name} has "
            f"{shape_text(first.shape)}; restore the pair or exclude the case"
        )
    corners = np.array([[*c, 1] for c in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in shape), 1]
    distance = np.linalg.norm((corners @ (affine - other).T)[:, :3], axis=1).max()
    if distance > SHIFT * min(first.spacing):
        raise DataError(
            f"{paths[1]}: lies up to {distance:.3g} mm away from {paths[0].name} (their affines "
            "differ); restore the pair or exclude the case"
        )


def _turn_grid(volume: NiftiVolume) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Return affine and shape of a volume whose axes are turned to LPS, as its voxels are."""
    to_lps = ornt_transform(io_orientation(volume.affine), LPS)
    axes = np.argsort(to_lps[:, 0])
    shape = tuple(volume.shape[int(axis)] for axis in axes)
    return volume.affine @ inv_ornt_aff(to_lps, volume.shape), shape


def map_labels(path: Path, labels: NDArray[Any], new_value: Mapping[int, int]) -> NDArray[np.uint8]:
    """Replace the labels of a file by the values of the dataset's label map (see `Labels`).

    `new_value` gives the new value of each label that may occur; others are refused.
    """
    values = np.unique(labels)
    if unknown := [value for value in values.tolist() if value not in new_value]:
        some = ", ".join(f"{value:g}" for value in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        known = ", ".join(map(str, sorted(new_value)))
        raise DataError(
            f"{path}: unknown labels {some}{more} (known are {known}); "
            "correct them or exclude the case"
        )
    new_values = np.array([new_value[int(value)] for value in values.tolist()], np.uint8)
    return new_values[np.searchsorted(values, labels)]


def _check_sizes(path: Path, image: Any) -> None:  # noqa: ANN401
    """Refuse a voxel size of zero, which nibabel reads as 1 mm if the header has no matrix."""
    with ImageOpener(str(path)) as stream:
        header = type(image.header).from_fileobj(stream, check=False)
    if int(header["sform_code"]) == 0 and not np.all(header["pixdim"][1:4] != 0):
        raise DataError(f"{path}: a voxel size of zero; correct the header")


def _check_sum(path: Path) -> None:
    """Read a compressed file to the checksum at its end, which nibabel does not reach."""
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass


def check_axes(path: Path, affine: NDArray[np.float64]) -> None:
    """Refuse a grid whose axes have no size, are not perpendicular or have no orientation."""
    axes = affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not (sizes > 0).all():
        raise DataError(f"{path}: a voxel size that is zero or no number; correct the header")
    cosines = (axes / sizes).T @ (axes / sizes) - np.eye(3)
    if np.abs(cosines).max() > SHEAR:
        raise DataError(
            f"{path}: axes that are not at right angles; resample it to a straight grid"
        )
    try:
        axcodes2ornt(nib.orientations.ornt2axcodes(io_orientation(affine)))
    except (OrientationError, ValueError) as error:
        raise DataError(f"{path}: no usable orientation; correct the header") from error


def to_smallest_dtype(voxels: NDArray[Any]) -> NDArray[Any]:
    """Convert to uint8, uint16 or int16, if that holds the values exactly; otherwise float32."""
    low, high = float(voxels.min()), float(voxels.max())
    if voxels.dtype.kind in "bui" or (voxels == np.rint(voxels)).all():
        for dtype in (np.uint8, np.uint16, np.int16):
            limits = np.iinfo(dtype)
            if limits.min <= low and high <= limits.max:
                return np.ascontiguousarray(voxels, dtype)
    return np.ascontiguousarray(voxels, np.float32)
