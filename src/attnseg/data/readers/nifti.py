"""Decoding NIfTI volumes, checked and turned to one orientation."""

import contextlib
import gzip
import logging
import zlib
from collections.abc import Iterator, Mapping
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

from attnseg.data.reader import shape_text
from attnseg.errors import DataError

log = logging.getLogger(__name__)

PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}  # of axes x, y, z
LPS = axcodes2ornt(("L", "P", "S"))
MAX_VOXELS = 1 << 31
LARGEST = float(np.finfo(np.float32).max)
SHEAR = 0.02  # cosine between axes up to which a grid counts as straight
SHIFT = 0.1  # share of a voxel by which two files may lie apart
NIFTI_ERRORS = (
    ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class NiftiVolume:
    """A decoded volume.

    Attributes:
        voxels: `[S, H, W]`, or `[S, H, W, C]` of several channels, oriented as in `Case`.
        spacing: voxel size along S, H, W, mm.
        affine: `[4, 4]` of the file (see `Case`).
        shape: of the file's array, less channels.
    """

    voxels: NDArray[Any]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    shape: tuple[int, ...]


def read_nifti(path: Path, plane: str = "axial", channels: int = 1) -> NiftiVolume:
    """Decode a volume.

    Args:
        path: of a `.nii` or `.nii.gz` file.
        plane: of the slices, one of `PLANES`.
        channels: along the file's last axis; 1 for a file without one.

    Returns:
        Integers as in the file, uint8, uint16 or int16 if they fit; all else float32.

    Raises:
        DataError: the file is broken, not of three dimensions and these channels, has no usable
            geometry, or holds values that are not finite in float32.
    """
    try:
        with _log_header_repairs(path):
            image: Any = nib.load(path)
        shape = tuple(int(n) for n in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) == 5 and shape[3] == 1:  # vectors, as NIfTI has them
            shape = (*shape[:3], shape[4])
        if len(shape) == 4 and channels > 1 and shape[3] != channels:
            raise DataError(
                f"{path}: {shape[3]} channels instead of {channels}; give those that were "
                "trained on"
            )
        if len(shape) != (3 if channels == 1 else 4) or min(shape) < 1:
            wanted = "" if channels == 1 else f" and {channels} channels"
            raise DataError(
                f"{path}: {shape_text(shape)} voxels, not a volume of three dimensions{wanted}; "
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
    real = voxels.dtype.kind == "f"
    if real and not -LARGEST <= voxels.min() <= voxels.max() <= LARGEST:  # NaN is neither
        raise DataError(
            f"{path}: NaN or infinite voxels, or beyond {LARGEST:.1e}; repair the file or exclude "
            "the case"
        )
    slices, spacing = to_slices(voxels, affine, plane)
    return NiftiVolume(to_smallest_dtype(slices), spacing, affine, shape[:3])


@contextlib.contextmanager
def _log_header_repairs(path: Path) -> Iterator[None]:
    """Say with the file's name what nibabel takes for something else in its header."""

    def name(record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR:  # else it is raised, too
            log.warning("%s: %s", path, record.getMessage())
        return False

    nib.imageglobals.logger.addFilter(name)
    try:
        yield
    finally:
        nib.imageglobals.logger.removeFilter(name)


def to_slices(
    voxels: NDArray[Any], affine: NDArray[np.float64], plane: str
) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Turn a volume from the order of its file to slices as in `Case`.

    Args:
        voxels: three axes that the affine speaks of, then any others.
        affine: as in `Case`, checked.
        plane: of the slices, one of `PLANES`.

    Returns:
        `[S, H, W, ...]`, a view, and the voxel size along S, H, W, mm.
    """
    to_lps = ornt_transform(io_orientation(affine), LPS)
    turned = nib.orientations.apply_orientation(voxels, to_lps)
    sizes = np.linalg.norm((affine @ inv_ornt_aff(to_lps, voxels.shape[:3]))[:3, :3], axis=0)
    axes = PLANES[plane]
    first, second, third = (float(sizes[axis]) for axis in axes)
    return turned.transpose(*axes, *range(3, voxels.ndim)), (first, second, third)


def from_slices(slices: NDArray[Any], affine: NDArray[np.float64], plane: str) -> NDArray[Any]:
    """Turn slices back to the order of the file: the inverse of `to_slices`."""
    turned = slices.transpose(*np.argsort(PLANES[plane]), *range(3, slices.ndim))
    back = ornt_transform(LPS, io_orientation(affine))
    return np.asarray(nib.orientations.apply_orientation(turned, back))


def check_same_grid(first: NiftiVolume, second: NiftiVolume, paths: tuple[Path, Path]) -> None:
    """Check that two volumes lie in the same place.

    Raises:
        DataError: they have other shapes, or a corner lies more than `SHIFT` voxels apart.
    """
    if first.shape != second.shape:
        raise DataError(
            f"{paths[1]}: {shape_text(second.shape)} voxels, but {paths[0].name} has "
            f"{shape_text(first.shape)}; restore the pair or exclude the case"
        )
    corners = np.array([[*c, 1] for c in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in first.shape), 1]
    apart = np.linalg.norm((corners @ (first.affine - second.affine).T)[:, :3], axis=1).max()
    if apart > SHIFT * min(first.spacing):
        raise DataError(
            f"{paths[1]}: lies up to {apart:.3g} mm away from {paths[0].name} (their affines "
            "differ); restore the pair or exclude the case"
        )


def map_labels(path: Path, labels: NDArray[Any], meaning: Mapping[int, int]) -> NDArray[np.uint8]:
    """Return the mask of a label map.

    Args:
        path: named in the error.
        labels: numbers of any type and shape.
        meaning: value in the mask of each label that may occur.

    Raises:
        DataError: other labels occur; names them.
    """
    values = np.unique(labels)
    if unknown := [value for value in values.tolist() if value not in meaning]:
        some = ", ".join(f"{value:g}" for value in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        known = ", ".join(map(str, sorted(meaning)))
        raise DataError(
            f"{path}: unknown labels {some}{more} (known are {known}); "
            "correct them or exclude the case"
        )
    meant = np.array([meaning[int(value)] for value in values.tolist()], np.uint8)
    return meant[np.searchsorted(values, labels)]


def _check_sizes(path: Path, image: Any) -> None:  # noqa: ANN401
    """Refuse voxel sizes of zero, which nibabel takes for 1 mm where no matrix gives them."""
    with ImageOpener(str(path)) as stream:
        header = type(image.header).from_fileobj(stream, check=False)
    if int(header["sform_code"]) == 0 and not np.all(header["pixdim"][1:4] != 0):
        raise DataError(f"{path}: a voxel size of zero; correct the header")


def _check_sum(path: Path) -> None:
    """Read a compressed file to its end, where its check sum is; nibabel stops before."""
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass


def check_axes(path: Path, affine: NDArray[np.float64]) -> None:
    """Refuse a grid whose axes cannot be used.

    Raises:
        DataError: names the file.
    """
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
    """Return the smallest of the stored types that holds the values exactly, or float32."""
    low, high = float(voxels.min()), float(voxels.max())
    whole = voxels.dtype.kind in "bui" or bool((voxels == np.rint(voxels)).all())
    if whole:
        for dtype in (np.uint8, np.uint16, np.int16):
            limits = np.iinfo(dtype)
            if limits.min <= low and high <= limits.max:
                return np.ascontiguousarray(voxels, dtype)
    return np.ascontiguousarray(voxels, np.float32)
