"""Decoding of DICOM series: geometry checked, stored values turned into intensities."""

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnseg.data.notices import warn_of_file
from attnseg.data.reader import shape_text
from attnseg.data.readers.nifti import LARGEST, MAX_VOXELS, check_axes, to_smallest_dtype
from attnseg.errors import DataError, first_line
from attnseg.prediction.dicom_headers import (
    EQUAL_TAGS,
    PATIENT_TAGS,
    TAGS,
    Frame,
    list_frames,
    read_dicom,
    read_integer,
    read_numbers,
    refusing_unreadable,
)

GREY = ("MONOCHROME1", "MONOCHROME2")
GAP = 0.1  # relative tolerance of the distances between slices
BESIDE = 0.5  # largest distance of a slice from the line through the others, share of a pixel
TURN = 1e-3  # tolerance of direction cosines, of relative pixel spacings and, in mm, of positions
UNIT = 0.01  # largest difference from 1 of the length of a direction, which is then normalised
# Warnings and their files by their first words, so that each kind is noted once.
Notes = dict[str, tuple[Path, str]]
# Markers of JPEG and JPEG-LS that are followed by the size of the picture.
FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
TO_RAS = np.array([-1.0, -1.0, 1.0])  # DICOM's x and y run to the left and the back


@dataclass(frozen=True)
class DicomVolume:
    """A decoded series.

    Attributes:
        voxels: `[columns, rows, slices]`, the intensities that the files say.
        affine: affine `[4, 4]` of columns, rows, slices (see `Case`).
        frames: header of each slice.
        thick: whether the distance along the slices is known; else it is 1 mm in `affine`.
        warnings: a line for whatever the files leave open or contradict.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    frames: tuple[Frame, ...]
    thick: bool
    warnings: tuple[str, ...]


def read_series(files: Sequence[Path]) -> DicomVolume:
    """Decode a series, whose files may come in any order.

    Raises:
        DataError: slices are missing, doubled or unlike each other, of several patients, not grey,
            or a file cannot be decoded.
    """
    with refusing_unreadable(files[0]):  # An attribute is parsed when it is first asked for.
        return _read_frames(files)


def _read_frames(files: Sequence[Path]) -> DicomVolume:
    frames = []
    for path in files:
        frames += list_frames(path, read_dicom(path, TAGS))
    first = frames[0]
    rows, columns = (read_integer(first.path, first.header, tag) for tag in ("Rows", "Columns"))
    check_frames_agree(frames)
    shape = (len(frames), rows, columns)
    if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
        raise DataError(f"{first.path}: {shape_text(shape)} voxels are too many; crop the series")
    order, affine, thick = locate_slices(frames)
    ordered = tuple(frames[at] for at in order)
    check_axes(ordered[0].path, affine)
    voxels, notes = _read_voxels(ordered, shape)
    for path, text in notes:
        warn_of_file(path, text)
    lines = tuple(f"{path}: {text}" for path, text in notes)
    return DicomVolume(voxels.transpose(2, 1, 0), affine, ordered, thick, lines)


def check_frames_agree(frames: Sequence[Frame]) -> None:
    """Refuse slices of several patients, or unlike each other; and colour."""
    first = frames[0]
    for frame in frames:
        for tag in PATIENT_TAGS:
            if _read_text(frame, tag) != _read_text(first, tag):
                raise DataError(
                    f"{frame.path}: another patient than {first.path.name} of the same series, by "
                    f"its {tag}; give each patient as an input of its own"
                )
        for tag in EQUAL_TAGS:
            if _read_text(frame, tag) != _read_text(first, tag):
                raise DataError(
                    f"{frame.path}: {tag} {_read_text(frame, tag) or 'missing'}, but "
                    f"{first.path.name} of the same series has {_read_text(first, tag) or 'none'}; "
                    "give each as an input of its own"
                )
    colour = _read_text(first, "PhotometricInterpretation")
    if colour not in GREY or _read_text(first, "SamplesPerPixel") not in ("", "1"):
        raise DataError(
            f"{first.path}: colour pixels ({colour or 'no PhotometricInterpretation'}); give a "
            "series of grey ones"
        )


def _read_text(frame: Frame, tag: str) -> str:
    """Return an attribute as text, which is empty if it is missing or empty."""
    with refusing_unreadable(frame.path):
        value = frame.header.get(tag)
        # Names of patients may end with delimiters of parts that are empty.
        return "" if value is None else str(value).rstrip(" ^").strip()


def locate_slices(
    frames: Sequence[Frame],
) -> tuple[list[int], NDArray[np.float64], bool]:
    """Return the slices' order along the normal, the affine, and whether its step is known."""
    tags = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    positions, orientations, spacings = (
        np.array([read_numbers(frame.path, frame.header, tag, n) for frame in frames])
        for tag, n in tags.items()
    )
    first = frames[0].path
    if spacings[0].min() <= 0:
        raise DataError(f"{first}: PixelSpacing is zero or negative; correct the header")
    for what, values, tolerance in (
        ("orientation", orientations, TURN),
        ("pixel spacing", spacings, TURN * spacings[0].min()),
    ):
        if odd := np.flatnonzero(np.abs(values - values[0]).max(1) > tolerance).tolist():
            raise DataError(
                f"{frames[odd[0]].path}: another {what} than {first.name} of the same series; "
                "give each as an input of its own"
            )
    axes = orientations[0].reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > UNIT:
        raise DataError(
            f"{first}: ImageOrientationPatient holds directions of length {lengths[0]:.3g} and "
            f"{lengths[1]:.3g}, not 1; correct the header"
        )
    along_row, along_column = axes / lengths[:, None]
    normal = np.cross(along_row, along_column)
    order = np.argsort(positions @ normal, kind="stable").tolist()
    step = _measure_step([frames[at].path for at in order], positions[order], normal, spacings[0])
    thick = step is not None
    if step is None:
        thickness = _read_thickness(frames[0])
        thick = thickness is not None
        step = normal * (thickness or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacings[0, 1]
    affine[:3, 1] = along_column * spacings[0, 0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    affine[:3] *= TO_RAS[:, None]
    return order, affine, thick


def _measure_step(
    paths: Sequence[Path],
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    spacing: NDArray[np.float64],
) -> NDArray[np.float64] | None:
    """Return the vector from slice to slice, mm; `None` for a single one.

    Raises:
        DataError: slices are missing, doubled, or beside the others.
    """
    if len(positions) == 1:
        return None
    steps = np.diff(positions @ normal)
    usual = np.median(steps)
    for (path, after), step in zip(pairwise(paths), steps, strict=True):
        if step < TURN:
            other = "another of its frames" if after == path else path.name
            raise DataError(f"{after}: at the same position as {other}; keep one of them")
        if abs(step - usual) > GAP * usual:
            raise DataError(
                f"{after}: {step:.4g} mm above {path.name}, where slices are {usual:.4g} mm apart: "
                "one is missing; restore it"
            )
    vector = np.asarray((positions[-1] - positions[0]) / len(steps))
    line = positions[0] + np.arange(len(positions))[:, None] * vector
    away = positions - line
    away -= (away @ normal)[:, None] * normal
    distances = np.linalg.norm(away, axis=1)
    if distances.max() > BESIDE * spacing.min():
        at = int(distances.argmax())
        raise DataError(
            f"{paths[at]}: {distances[at]:.3g} mm beside the line through the series' other "
            "slices; resample the series to a straight grid"
        )
    return vector


def _read_thickness(frame: Frame) -> float | None:
    """Return the size of a single slice along its normal, mm; `None` if the file has none."""
    value = frame.header.get("SliceThickness")
    if value is None or str(value).strip() == "":
        return None
    thickness = float(read_numbers(frame.path, frame.header, "SliceThickness", 1)[0])
    if thickness < 0:
        raise DataError(f"{frame.path}: SliceThickness is negative; correct the header")
    return thickness or None


def _read_voxels(
    frames: Sequence[Frame], shape: tuple[int, int, int]
) -> tuple[NDArray[Any], list[tuple[Path, str]]]:
    """Return the intensities `[slices, rows, columns]`, and warnings."""
    planes: list[NDArray[Any]] = [np.empty(0)] * len(frames)
    padding: list[NDArray[np.bool_] | None] = [None] * len(frames)
    notes: Notes = {}
    by_file = sorted(range(len(frames)), key=lambda at: (str(frames[at].path), at))
    for path, group in groupby(by_file, key=lambda at: frames[at].path):
        header, stored = _decode(path, notes)
        for at in group:
            number = frames[at].number
            plane = stored if number is None else stored.reshape(-1, *stored.shape[-2:])[number]
            if plane.shape != shape[1:]:
                raise DataError(
                    f"{path}: {shape_text(plane.shape)} pixels, unlike its header; restore it"
                )
            padding[at] = _find_padding(path, header, plane)
            planes[at] = _to_intensities(frames[at], header, plane, notes)
    voxels = np.stack(planes)
    if not -LARGEST <= voxels.min() <= voxels.max() <= LARGEST:  # This refuses NaN, too.
        raise DataError(
            f"{frames[0].path}: NaN or infinite intensities in the series, or beyond "
            f"{LARGEST:.1e}; correct its rescaling"
        )
    _darken_padding(voxels, padding, frames, notes)
    return to_smallest_dtype(voxels), list(notes.values())


def add_note(notes: Notes, path: Path, text: str) -> None:
    """Add a warning with its file's name, unless there is one of its kind."""
    notes.setdefault(text[:24], (path, text))


def _decode(path: Path, notes: Notes) -> tuple[Any, NDArray[Any]]:
    """Return a file's header and its stored values; `notes` receives what its decoder warns of."""
    header = read_dicom(path, pixels=True)
    _check_high_bit(path, header)
    _check_coded_sizes(path, header)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stored = np.asarray(header.pixel_array)
    except (NotImplementedError, RuntimeError) as error:
        syntax = header.file_meta.get("TransferSyntaxUID")
        name = getattr(syntax, "name", syntax)
        raise DataError(
            f"{path}: no decoder for {name} is installed, or none that can read it "
            f"({first_line(error)[:80]}); install pylibjpeg with its plugins, or decompress the "
            "series"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: pixels cannot be decoded ({first_line(error)[:100]}); restore it"
        ) from error
    for warning in caught:
        add_note(notes, path, " ".join(str(warning.message).split())[:160])
    return header, stored


def _check_high_bit(path: Path, header: Any) -> None:  # noqa: ANN401
    """Refuse values that do not begin at the lowest bit, which decoders would multiply."""
    tags = ("HighBit", "BitsStored")
    with refusing_unreadable(path):
        high, stored = (header.get(tag) for tag in tags)
        if None not in (high, stored) and int(high) != int(stored) - 1:
            raise DataError(
                f"{path}: HighBit is {high}, not {int(stored) - 1}, of {stored} bits; correct it"
            )


def _check_coded_sizes(path: Path, header: Any) -> None:  # noqa: ANN401
    """Refuse JPEG pixels whose own size is not the header's: decoders make room for theirs."""
    from pydicom.encaps import generate_frames

    with refusing_unreadable(path):
        if not header.file_meta.TransferSyntaxUID.is_encapsulated:
            return
        expected = header.Rows, header.Columns
        count = int(header.get("NumberOfFrames") or 1)
        for data in generate_frames(header.PixelData, number_of_frames=count):
            if (size := _read_coded_size(data)) not in (None, expected):
                raise DataError(f"{path}: {shape_text(size)} pixels, unlike its header; restore it")


def _read_coded_size(data: bytes) -> tuple[int, int] | None:
    """Return rows and columns of a JPEG, JPEG-LS or JPEG 2000 picture; `None` for others."""
    if data[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000 counts from an origin
        right, bottom, left, top = struct.unpack_from(">4I", data, 8)
        return bottom - top, right - left
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in FRAME_MARKERS:
            rows, columns = struct.unpack_from(">2H", data, at + 5)
            return rows, columns
        at += 1 if data[at + 1] == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _to_intensities(
    frame: Frame,
    header: Any,  # noqa: ANN401
    stored: NDArray[Any],
    notes: Notes,
) -> NDArray[Any]:
    """Return a slice's stored values as the intensities that they stand for.

    A modality lookup table is applied, or slope and intercept, the frame's own if it has them.
    MONOCHROME1 is turned, so that high is bright, unless the intensities are made by a table or by
    slope and intercept: those are quantities such as Hounsfield units, which have no brightness.
    """
    from pydicom.pixels.processing import apply_modality_lut

    path = frame.path
    inverse = header.get("PhotometricInterpretation") == "MONOCHROME1"
    if header.get("ModalityLUTSequence"):
        with refusing_unreadable(path):
            intensities = np.asarray(apply_modality_lut(stored, header))
            if intensities.shape != stored.shape:
                raise ValueError("modality lookup table")
        as_stored = False
    else:
        present = [tag for tag in ("RescaleSlope", "RescaleIntercept") if tag in frame.header]
        if len(present) == 1:
            raise DataError(
                f"{path}: {present[0]} without the other of RescaleSlope and RescaleIntercept; "
                "restore it"
            )
        slope, intercept = (
            [read_numbers(path, frame.header, tag, 1)[0] for tag in present] if present else (1, 0)
        )
        if slope == 0:
            raise DataError(f"{path}: RescaleSlope is 0; correct it")
        as_stored = (slope, intercept) == (1, 0)
        with np.errstate(over="ignore", invalid="ignore"):
            intensities = (
                stored
                if as_stored
                else np.asarray(stored * float(slope) + float(intercept), np.float32)
            )
    if inverse and as_stored:
        add_note(notes, path, "MONOCHROME1, turned so that high values are bright")
        bits = int(header.get("BitsStored") or 16)
        signed = int(header.get("PixelRepresentation") or 0)
        return np.asarray((-1 if signed else (1 << bits) - 1) - stored.astype(np.int64))
    if inverse:
        add_note(notes, path, "rescaled values, not turned in spite of MONOCHROME1")
    return intensities


def _find_padding(path: Path, header: Any, stored: NDArray[Any]) -> NDArray[np.bool_] | None:  # noqa: ANN401
    """Return where a slice holds its padding value, outside the image; `None` if nowhere."""
    if header.get("PixelPaddingValue") is None:
        return None
    tags = [
        tag
        for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        if header.get(tag) is not None
    ]
    values = [read_numbers(path, header, tag, 1)[0] for tag in tags]
    if stored.dtype.kind == "i":  # Some files write negative padding as an unsigned number.
        limit = np.iinfo(stored.dtype).max
        values = [value - 2 * (limit + 1) if value > limit else value for value in values]
    low, high = min(values), max(values)
    inside = (stored >= low) & (stored <= high)
    return inside if inside.any() else None


def _darken_padding(
    voxels: NDArray[Any],
    padding: Sequence[NDArray[np.bool_] | None],
    frames: Sequence[Frame],
    notes: Notes,
) -> None:
    """Give padding that is brighter than most of the image the image's smallest intensity."""
    if all(mask is None for mask in padding):
        return
    outside = np.stack([np.zeros(voxels.shape[1:], bool) if m is None else m for m in padding])
    if outside.all():
        return
    image = voxels[~outside]
    bright = outside & (voxels > np.median(image))
    if bright.any():
        at = int(np.flatnonzero(bright.any((1, 2)))[0])
        voxels[bright] = image.min()
        add_note(
            notes,
            frames[at].path,
            f"padding that would be bright, {int(bright.sum())} voxels of the series, made dark",
        )
