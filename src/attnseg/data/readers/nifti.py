"""Decoding of NIfTI volumes, with checks and reorientation to one order of axes."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder
from nibabel.orientations import (
    OrientationError,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from attnseg.data.folders import find_companion
from attnseg.data.notices import warn_of_file
from attnseg.data.reader import Case, shape_text
from attnseg.data.readers.content import GZIP, detect_content
from attnseg.data.readers.unpacking import HEADER_LIMIT, LARGEST_RATIO, BoundedGzip
from attnseg.errors import DataError, Problems
from attnseg.memory import free_memory

# Pairs are named by their headers.
ENDINGS = (".nii.gz", ".nii", ".hdr", ".hdr.gz")
# Axes of an LPS volume (0 for x, 1 for y, 2 for z) along slices, rows and columns.
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
LPS = axcodes2ornt(("L", "P", "S"))
MAX_VOXELS = 1 << 31
LARGEST = float(np.finfo(np.float32).max)
SHEAR = 0.02  # largest cosine between axes that count as perpendicular
SHIFT = 0.1  # largest distance between the grids of two files, share of a voxel
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by code of the unit; 0 says nothing
IMAGES = {
    ("single", 1): nib.Nifti1Image, ("pair", 1): nib.Nifti1Pair,
    ("single", 2): nib.Nifti2Image, ("pair", 2): nib.Nifti2Pair,
}  # fmt: skip
NO_VOLUME = {
    "analyze": "Analyze 7.5, or a NIfTI header without its magic: left and right are unknown",
    "cifti": "CIFTI, values of points of a surface",
}


@dataclass(frozen=True)
class NiftiVolume:
    """A decoded volume.

    Attributes:
        voxels: `[S, H, W]`, or `[S, H, W, C]` if there are several channels; oriented as in `Case`.
        spacing: voxel size along S, H, W, mm.
        affine: affine `[4, 4]` of the file (see `Case`).
        shape: shape of the file's array without channels.
        warnings: a line for whatever the header leaves open or contradicts.
    """

    voxels: NDArray[Any]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    shape: tuple[int, ...]
    warnings: tuple[str, ...]


def read_nifti(path: Path, plane: str = "axial", channels: int = 1) -> NiftiVolume:
    """Decode a NIfTI file, or a pair given by its header.

    Args:
        path: the file.
        plane: plane of the slices, one of `PLANES`.
        channels: number of channels along the file's last axis; 1 for a file without that axis.

    Returns:
        Voxels of type uint8, uint16 or int16, if that holds the values exactly; otherwise float32.
        A file of two axes is a volume of one slice along the third.

    Raises:
        DataError: the file is broken, has other dimensions or channels, has no usable geometry, or
            holds values that are not finite in float32.
    """
    notes: list[str] = []
    try:
        with open_nifti(path, notes) as image:
            shape = _check_shape(path, tuple(map(int, image.shape)), channels)
            affine = _read_affine(path, image, notes)
            voxels = _decode_voxels(path, image).reshape(shape)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # made to harm, a header can have the parser raise anything
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
    for note in notes:
        warn_of_file(path, note)
    slices, spacing = to_slices(voxels, affine, plane)
    warnings = tuple(f"{path}: {note}" for note in notes)
    return NiftiVolume(to_smallest_dtype(slices), spacing, affine, shape[:3], warnings)


@contextlib.contextmanager
def open_nifti(path: Path, notes: list[str] | None = None) -> Iterator[Any]:
    """Open a NIfTI file, or a pair by its header, as its content says and whatever its name.

    Yields nibabel's image; its voxels can be read until the file is closed. `notes` receives what
    nibabel repairs in the header.

    Raises:
        DataError: it is no NIfTI file of voxels, or half a pair.
    """
    content = detect_content(path)
    if content.kind != "nifti":
        kind = "DICOM" if content.kind == "dicom" else content.form or "no NIfTI"
        raise DataError(f"{path}: not a readable NIfTI file ({kind} by its content); restore it")
    if content.form in NO_VOLUME:
        raise DataError(f"{path}: {NO_VOLUME[content.form]}; convert it to a NIfTI volume")
    *_, voxels = list_nifti_files(path)
    if content.form == "pair" and voxels == path:
        raise DataError(f"{path}: the header of a pair without its .img file; restore the pair")
    with contextlib.ExitStack() as stack:
        header, image = (
            FileHolder(fileobj=stack.enter_context(_open_bounded(file))) for file in (path, voxels)
        )
        with _noting_repairs([] if notes is None else notes):
            opened = IMAGES[content.form, content.version].from_file_map(
                {"header": header, "image": image}
            )
        yield opened


def list_nifti_files(path: Path) -> tuple[Path, ...]:
    """Return the files that a NIfTI file is read from: itself and, of a pair, the `.img` file."""
    companion = find_companion(path, ".hdr", ".img")
    return (path,) if companion is None else (path, companion)


def _open_bounded(path: Path) -> BoundedGzip | BufferedReader:
    """Open a file that is compressed or not, by its content."""
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    return BoundedGzip(path) if packed else path.open("rb")


def _decode_voxels(path: Path, image: Any) -> NDArray[Any]:  # noqa: ANN401
    """Return the scaled voxels, unless the file cannot hold them or memory has no room.

    A few bytes can unpack to gigabytes, and a header can declare any number of voxels.
    """
    proxy, file = image.dataobj, image.file_map["image"].fileobj
    count, stored = int(np.prod(proxy.shape, dtype=np.int64)), proxy.dtype.itemsize
    packed = isinstance(file, BoundedGzip)
    *_, place = list_nifti_files(path)
    end = int(proxy.offset) + count * stored
    if end > place.stat().st_size * (LARGEST_RATIO if packed else 1):
        raise ValueError(f"its header declares {end} bytes, more than {place.name} can hold")
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    needed = count * (2 * stored * packed + (16 if scaled else stored))
    if (free := free_memory()) is not None and needed > free:
        raise DataError(
            f"{path}: {shape_text(proxy.shape)} voxels need {needed / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free; crop it or use a machine that has more"
        )
    if packed:
        file.limit = count * stored + HEADER_LIMIT
    voxels: NDArray[Any] = np.asanyarray(proxy)
    while packed and file.read(1 << 20):  # to a checksum at the end
        pass
    return voxels


def _check_shape(path: Path, shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """Return the shape of a volume, with its channels if there are several."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) == 5 and shape[3] == 1:  # NIfTI stores vectors along the fifth axis.
        shape = (*shape[:3], shape[4])
    if len(shape) == 4 and channels > 1 and shape[3] != channels:
        raise DataError(
            f"{path}: {shape[3]} channels instead of {channels}; give those that were trained on"
        )
    if len(shape) != (3 if channels == 1 else 4) or min(shape) < 1:
        expected = "" if channels == 1 else f" and {channels} channels"
        way = "split it" if len(shape) > 3 else "restore it"
        way = way if channels == 1 else "correct it or the dataset's channels,"
        raise DataError(
            f"{path}: {shape_text(shape)} voxels, not a volume of three dimensions{expected}; "
            f"{way} or exclude the case"
        )
    if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
        raise DataError(
            f"{path}: {shape_text(shape)} voxels are too many; crop or exclude the case"
        )
    return shape


def _read_affine(path: Path, image: Any, notes: list[str]) -> NDArray[np.float64]:  # noqa: ANN401
    """Return the affine in mm, as nibabel reads it; add to `notes` what the header leaves open."""
    file = image.file_map["header"].fileobj
    file.seek(0)
    header = type(image.header).from_fileobj(file, check=False)
    # Nibabel reads a size of zero as 1 mm if the header has no matrix.
    sizes = header["pixdim"][1 : 1 + min(3, len(image.shape))]
    if int(header["sform_code"]) == 0 and not np.all(sizes != 0):
        raise DataError(f"{path}: a voxel size of zero; correct the header")
    unit = int(header["xyzt_units"]) & 7
    if unit not in MILLIMETRES:
        raise DataError(f"{path}: xyzt_units has no unit of length {unit}; correct the header")
    if unit == 0:
        notes.append("xyzt_units names no unit of length; voxel sizes are taken as mm")
    affine = np.asarray(image.affine, np.float64).copy()
    affine[:3] *= MILLIMETRES[unit]
    check_axes(path, affine)
    codes = [int(image.header[key]) for key in ("qform_code", "sform_code")]
    if not any(codes):
        notes.append(
            "qform_code and sform_code are 0, so the orientation is not known and left and right "
            f"may be exchanged; taken as {''.join(nib.aff2axcodes(affine))}"
        )
    elif all(codes):
        with contextlib.suppress(ValueError, HeaderDataError):  # the form that is not used
            mine, other = ("".join(nib.aff2axcodes(m)) for m in (affine, image.get_qform()))
            if mine != other:
                notes.append(
                    f"the orientation is {mine} by its sform, which counts, and {other} by its "
                    "qform"
                )
    return affine


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
def _noting_repairs(notes: list[str]) -> Iterator[None]:
    """Add nibabel's warnings on invalid header fields, which lack the file's name, to `notes`."""

    def keep(record: logging.LogRecord) -> bool:
        # Nibabel raises errors besides logging them; other threads open other files.
        if record.levelno < logging.ERROR and record.thread == threading.get_ident():
            notes.append(record.getMessage())
        return False

    nib.imageglobals.logger.addFilter(keep)
    try:
        yield
    finally:
        nib.imageglobals.logger.removeFilter(keep)


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


def find_labels(path: Path, labels: NDArray[Any]) -> NDArray[Any]:
    """Return the values of a label map in their order; refuse those that are no whole numbers."""
    values = np.unique(labels)
    if values.dtype.kind == "f" and len(broken := values[values != np.rint(values)]):
        some = ", ".join(map(str, broken[:3]))
        raise DataError(
            f"{path}: labels that are no whole numbers, such as {some} (soft labels, or a mask "
            "that was resampled); round them if whole ones are meant, or exclude the case"
        )
    return values


def map_labels(path: Path, labels: NDArray[Any], new_value: Mapping[int, int]) -> NDArray[np.uint8]:
    """Replace the labels of a file by the values of the dataset's label map (see `Labels`).

    `new_value` gives the new value of each label that may occur; others are refused.
    """
    values = find_labels(path, labels)
    if unknown := [value for value in values.tolist() if value not in new_value]:
        some = ", ".join(f"{value:.0f}" for value in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        known = ", ".join(map(str, sorted(new_value)))
        raise DataError(
            f"{path}: unknown labels {some}{more} (known are {known}); "
            "correct them or the dataset's labels, or exclude the case"
        )
    new_values = np.array([new_value[int(value)] for value in values.tolist()], np.uint8)
    return new_values[np.searchsorted(values, labels)]


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
