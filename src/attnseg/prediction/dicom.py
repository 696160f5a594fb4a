"""Reads DICOM series and writes DICOM segmentations.

pydicom and highdicom are imported only where they are needed.
"""

import importlib.util
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from attnseg.data.reader import shape_text
from attnseg.data.readers.nifti import MAX_VOXELS, check_axes, to_smallest_dtype
from attnseg.errors import ConfigError, DataError, Problems, first_line

SUFFIX = ".dcm"
NEEDED = ("pydicom", "highdicom")
UID = re.compile(r"[0-9.]{1,64}")
# Media directories and segmentations; the latter have pixels, too.
NO_IMAGES = ("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.66.4")
GAP = 0.1  # relative tolerance of the distances between slices
TURN = 1e-3  # tolerance of direction cosines, of relative pixel spacings and, in mm, of positions
LABEL_LENGTH = 64  # characters that DICOM allows in a segment label
EQUAL_TAGS = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation")
TAGS = [
    *EQUAL_TAGS, "SeriesInstanceUID", "MediaStorageSOPClassUID", "NumberOfFrames", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness",
]  # fmt: skip
TO_RAS = np.array([-1.0, -1.0, 1.0])  # DICOM's x and y run to the left and the back
Series = tuple[
    Path, str, tuple[Path, ...], bool
]  # folder, UID, files, whether it is alone in the folder


def group_series(paths: Sequence[Path], problems: Problems) -> tuple[list[Series], list[Path]]:
    """Group DICOM files by series; `problems` receives the files that cannot be read.

    Returns:
        The series, and the files that hold no image.

    Raises:
        ConfigError: pydicom or highdicom is not installed.
    """
    by_uid: dict[str, list[Path]] = defaultdict(list)
    others = []
    if paths and (missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]):
        raise ConfigError(
            f"input: {paths[0]} is DICOM, and {missing[0]} is not installed; pip install "
            "'attnseg[predict]'"
        )
    for path in paths:
        with problems.gathered():
            header = read_dicom(path, TAGS)
            uid = str(header.get("SeriesInstanceUID", ""))
            if header.file_meta.get("MediaStorageSOPClassUID") in NO_IMAGES:
                others.append(path)
            elif not UID.fullmatch(uid):
                raise DataError(f"{path}: no usable SeriesInstanceUID; restore the file")
            elif "Rows" in header:
                by_uid[uid].append(path)
            else:
                others.append(path)
    folders = [_common_folder(files) for files in by_uid.values()]
    return [
        (folder, uid, tuple(files), folders.count(folder) == 1)
        for folder, (uid, files) in zip(folders, by_uid.items(), strict=True)
    ], others


def read_series(
    files: Sequence[Path],
) -> tuple[NDArray[Any], NDArray[np.float64], tuple[Path, ...]]:
    """Decode a series, whose files may come in any order.

    Returns:
        Voxels `[columns, rows, slices]`, rescaled as the files say; affine (see `Case`); and the
        files in the order of the slices.

    Raises:
        DataError: slices are missing, doubled or unlike each other, or a file cannot be decoded.
    """
    headers = [read_dicom(path, TAGS) for path in files]
    first = headers[0]
    for path, header in zip(files, headers, strict=True):
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise DataError(f"{path}: several frames in one file; convert it to one file per slice")
        for tag in EQUAL_TAGS:
            if header.get(tag) != first.get(tag):
                raise DataError(
                    f"{path}: {tag} {header.get(tag)}, but {files[0].name} of the same series has "
                    f"{first.get(tag)}; separate them"
                )
    if int(first.get("SamplesPerPixel") or 1) != 1:
        raise DataError(f"{files[0]}: colour pixels; give a series of grey ones")
    shape = (len(files), int(first.Rows), int(first.Columns))
    if min(shape) < 1 or np.prod(shape, dtype=np.int64) > MAX_VOXELS:
        raise DataError(
            f"{files[0]}: {shape_text(shape)} voxels, none or too many; restore the series"
        )
    order, affine = _geometry(files, headers)
    ordered = tuple(files[at] for at in order)
    check_axes(ordered[0], affine)
    planes = [_read_pixels(path, shape[1:]) for path in ordered]
    voxels = to_smallest_dtype(np.stack(planes))
    return voxels.transpose(2, 1, 0), affine, ordered


def read_dicom(path: Path, tags: list[str] | None = None, pixels: bool = False) -> Any:  # noqa: ANN401
    """Read a file, or only some tags of its header."""
    import pydicom

    # The values that are used are checked here; warnings about others would only distract.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=tags, force=True)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; restore it") from error
    except Exception as error:  # made to harm, a file can have the parser raise anything
        raise DataError(f"{path}: not readable DICOM ({first_line(error)}); restore it") from error


def _numbers(path: Path, header: Any, tag: str, count: int) -> NDArray[np.float64]:  # noqa: ANN401
    """Return the numbers of a decimal string, which must be `count` finite ones."""
    try:
        values = np.array(header[tag].value, np.float64).reshape(-1)
        if len(values) != count or not np.isfinite(values).all():
            raise ValueError(f"{len(values)} numbers")
    except KeyError:
        raise DataError(f"{path}: no {tag}; give a series that has it, or pictures") from None
    except Exception as error:  # pydicom parses only now
        reason = first_line(error)[:80]
        raise DataError(f"{path}: {tag} is no {count} numbers ({reason}); restore it") from error
    return values


def _geometry(
    files: Sequence[Path], headers: Sequence[Any]
) -> tuple[list[int], NDArray[np.float64]]:
    """Return the files' order along the normal, and the affine of columns, rows, slices."""
    tags = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    positions, orientations, spacings = (
        np.array([_numbers(path, h, tag, n) for path, h in zip(files, headers, strict=True)])
        for tag, n in tags.items()
    )
    for what, values, tolerance in (
        ("orientation", orientations, TURN),
        ("pixel spacing", spacings, TURN * spacings[0].min()),
    ):
        if odd := np.flatnonzero(np.abs(values - values[0]).max(1) > tolerance).tolist():
            raise DataError(
                f"{files[odd[0]]}: another {what} than {files[0].name} of the same series; "
                "separate them"
            )
    along_row, along_column = orientations[0, :3], orientations[0, 3:]
    normal = np.cross(along_row, along_column)
    order = np.argsort(positions @ normal, kind="stable").tolist()
    heights = (positions @ normal)[order]
    steps = np.diff(heights)
    for (at, after), step in zip(pairwise(order), steps, strict=True):
        if step < TURN:
            raise DataError(
                f"{files[after]}: at the same position as {files[at].name}; keep one of them"
            )
        if abs(step - np.median(steps)) > GAP * np.median(steps):
            raise DataError(
                f"{files[after]}: {step:.4g} mm above {files[at].name}, where slices are "
                f"{np.median(steps):.4g} mm apart: one is missing; restore it"
            )
    if len(steps):
        step_vector = (positions[order[-1]] - positions[order[0]]) / len(steps)
    else:
        step_vector = normal * _numbers(files[0], headers[0], "SliceThickness", 1)[0]
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacings[0, 1]
    affine[:3, 1] = along_column * spacings[0, 0]
    affine[:3, 2] = step_vector
    affine[:3, 3] = positions[order[0]]
    affine[:3] *= TO_RAS[:, None]
    return order, affine


def _read_pixels(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a slice `[rows, columns]`, rescaled, with MONOCHROME1 inverted."""
    header = read_dicom(path, pixels=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = np.asarray(header.pixel_array)
    except (NotImplementedError, RuntimeError) as error:
        syntax = header.file_meta.get("TransferSyntaxUID")
        name = getattr(syntax, "name", syntax)
        raise DataError(
            f"{path}: no decoder for {name} is installed; install pylibjpeg with its plugins, or "
            "decompress the series"
        ) from error
    except Exception as error:
        raise DataError(
            f"{path}: pixels cannot be decoded ({first_line(error)[:100]}); restore it"
        ) from error
    if stored.shape != shape:
        raise DataError(f"{path}: {shape_text(stored.shape)} pixels, unlike its header; restore it")
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        bits = int(header.get("BitsStored") or 16)
        signed = int(header.get("PixelRepresentation") or 0)
        stored = (-1 if signed else (1 << bits) - 1) - stored.astype(np.int64)
    slope, intercept = (
        _numbers(path, header, tag, 1)[0] if tag in header else default
        for tag, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 0:
        raise DataError(f"{path}: RescaleSlope is 0; correct it")
    if (slope, intercept) == (1, 0):
        return stored
    return np.asarray(stored * slope + intercept, np.float32)


def write_segmentation(
    file: BinaryIO,
    masks: NDArray[np.bool_],
    files: Sequence[Path],
    classes: Sequence[str],
    algorithm: tuple[str, str],
    identity: str,
) -> None:
    """Write masks to `file` as a DICOM segmentation that refers to its series.

    Args:
        file: open file.
        masks: `[classes, columns, rows, slices]`, as `read_series` returns voxels.
        files: files of the series, in the order of the slices.
        classes: names of the segments.
        algorithm: name and version of the algorithm.
        identity: digest of the masks' origin, from which the UIDs are derived.
    """
    import highdicom as hd
    from pydicom.uid import generate_uid

    name, version = algorithm
    frames = np.ascontiguousarray(masks.transpose(3, 2, 1, 0), np.uint8)
    sources = [read_dicom(path) for path in files]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom warns of empty masks.
            segmentation = hd.seg.Segmentation(
                source_images=sources,
                pixel_array=frames,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_describe_segments(classes, name, version),
                series_instance_uid=generate_uid(entropy_srcs=[identity, "series"]),
                series_number=1,
                sop_instance_uid=generate_uid(entropy_srcs=[identity, "instance"]),
                instance_number=1,
                manufacturer="attnseg",
                manufacturer_model_name=name,
                software_versions=version,
                device_serial_number="0",
                series_description="Segmentation by attnseg",
            )
            segmentation.save_as(file)
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{files[0]}: no segmentation can be made of the series ({first_line(error)[:120]}); "
            "restore its headers"
        ) from error


def _describe_segments(classes: Sequence[str], name: str, version: str) -> list[Any]:
    """Return the description of each class's segment, with the algorithm that made it."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    labels = [name.replace("\\", "/")[:LABEL_LENGTH] for name in classes]
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=hd.sr.CodedConcept(f"class{number}", "99ATTNSEG", label),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name=name, version=version, family=codes.DCM.ArtificialIntelligence
            ),
        )
        for number, label in enumerate(labels, 1)
    ]


def _common_folder(files: Sequence[Path]) -> Path:
    """Return the deepest folder that holds all files, in it or below."""
    first, *others = files
    return next(up for up in first.parents if all(path.is_relative_to(up) for path in others))
