"""Headers of DICOM files: read, checked, and grouped by series.

pydicom and highdicom are imported only where they are needed.
"""

import contextlib
import importlib.util
import io
import logging
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnseg.data.readers.content import detect_content
from attnseg.data.readers.unpacking import HEADER_LIMIT, BoundedGzip, inflate
from attnseg.errors import AttnsegError, ConfigError, DataError, Problems, first_line

log = logging.getLogger(__name__)

SUFFIX = ".dcm"
NEEDED = ("pydicom", "highdicom")
UID_PATTERN = re.compile(r"(?=.{1,64}$)\d+(\.\d+)*")
# Storage classes and modalities whose pixels, if there are any, are no image of the body.
NO_IMAGE_CLASSES = {
    "1.2.840.10008.1.3.10": "media directory",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
}
NO_IMAGE_MODALITIES = (
    "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "SEG", "SR", "KO", "PR", "REG", "FID", "RWV",
    "DOC", "PLAN", "ECG", "AU", "HD", "M3D",
)  # fmt: skip
# The functional groups that say what the numbers of one frame mean and where they lie.
GROUPS = (
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)  # fmt: skip
EQUAL_TAGS = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "Modality", "RescaleType",
    "Units", "StudyInstanceUID", "FrameOfReferenceUID",
)  # fmt: skip
PATIENT_TAGS = ("PatientID", "PatientName", "PatientBirthDate")
FRAME_TAGS = [
    *EQUAL_TAGS, *PATIENT_TAGS, "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "ImageType",
    "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness",
    "RescaleSlope", "RescaleIntercept",
]  # fmt: skip
TAGS = [
    *FRAME_TAGS,
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
SIZE_TAGS = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames"]
DEFLATED = "1.2.840.10008.1.2.1.99"  # transfer syntax
# A series has a folder, a UID and files; the last item is true if it is alone in the folder.
Series = tuple[Path, str, tuple[Path, ...], bool]


@dataclass(frozen=True)
class Frame:
    """The header of one slice.

    Attributes:
        path: file that holds it.
        number: its number in the file, from 0; `None` if the file holds one slice only.
        header: the file's attributes, those of the slice itself among them.
    """

    path: Path
    number: int | None
    header: Any


def read_dicom(path: Path, tags: list[str] | None = None, pixels: bool = False) -> Any:  # noqa: ANN401
    """Read a file, with or without a preamble, also within gzip; or some tags of its header.

    Raises:
        DataError: the file cannot be read, or unpacks to more than its header allows.
    """
    import pydicom
    from pydicom.uid import UID, ExplicitVRLittleEndian

    # The values that are used are checked here; warnings about others would only distract.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with refusing_unreadable(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = partial(
            pydicom.dcmread, stop_before_pixels=not pixels, specific_tags=tags, force=True
        )
        packed = detect_content(path).packed
        limit = HEADER_LIMIT
        with BoundedGzip(path) if packed else path.open("rb") as file:
            meta = _read_meta(file)
            deflated = meta.get("TransferSyntaxUID") == DEFLATED
            if pixels and (packed or deflated):
                limit += _count_pixel_bytes(path)
            if isinstance(file, BoundedGzip):
                file.limit = limit
            if deflated:
                stream = io.BytesIO(inflate(file.read(), limit, whole=pixels))
                header = read(stream)
                meta.TransferSyntaxUID = ExplicitVRLittleEndian  # as the stream is
                header.file_meta = meta
            else:
                file.seek(0)
                header = read(file)
        if "TransferSyntaxUID" not in header.file_meta:
            header.file_meta.TransferSyntaxUID = UID(_guess_syntax(header))
        return header


def _read_meta(file: Any) -> Any:  # noqa: ANN401
    """Return the group of a file that says how the others are encoded, and leave these next."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset, read_preamble

    read_preamble(file, force=True)
    return FileMetaDataset(
        read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    )


def _count_pixel_bytes(path: Path) -> int:
    """Return the size of a file's pixels, unpacked, by its header."""
    header = read_dicom(path, SIZE_TAGS)
    counts = [read_integer(path, header, tag) for tag in SIZE_TAGS if header.get(tag) is not None]
    return math.prod(counts) // 8


@contextlib.contextmanager
def refusing_unreadable(path: Path) -> Iterator[None]:
    """Turn whatever reading a file raises into a `DataError` that names it.

    A file that is damaged, or made to harm, can have the parser raise anything.
    """
    try:
        yield
    except (AttnsegError, MemoryError):
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or first_line(error)}; restore it") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(f"{path}: not readable DICOM ({reason}); restore it") from error


def _guess_syntax(header: Any) -> str:  # noqa: ANN401
    """Return the encoding of a file that does not name it, by how it could be read."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = header.original_encoding
    if implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def group_series(paths: Sequence[Path], problems: Problems) -> tuple[list[Series], list[Path]]:
    """Group DICOM files by series; `problems` receives the files that cannot be read.

    Returns:
        The series, and the files that hold no image.

    Raises:
        ConfigError: pydicom or highdicom is not installed.
    """
    by_uid: dict[str, list[Path]] = defaultdict(list)
    others, kinds = [], Counter[str]()
    if paths and (missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]):
        raise ConfigError(
            f"input: {paths[0]} is DICOM, and {missing[0]} is not installed; pip install "
            "'attnseg[predict]'"
        )
    for path in paths:
        with problems.gathered(), refusing_unreadable(path):
            header = read_dicom(path, TAGS)
            uid = str(header.get("SeriesInstanceUID", ""))
            if kind := _name_other_kind(header):
                others.append(path)
                kinds[kind] += 1
            elif not UID_PATTERN.fullmatch(uid):
                raise DataError(f"{path}: no usable SeriesInstanceUID; restore the file")
            else:
                by_uid[uid].append(path)
    if others:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        log.info("Passed over, DICOM files without an image: %s; %s the first", counts, others[0])
    folders = [_common_folder(files) for files in by_uid.values()]
    return [
        (folder, uid, tuple(files), folders.count(folder) == 1)
        for folder, (uid, files) in zip(folders, by_uid.items(), strict=True)
    ], others


def _name_other_kind(header: Any) -> str | None:  # noqa: ANN401
    """Return the kind of a file that holds no image of the body; `None` for an image."""
    from pydicom.uid import UID

    storage = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    modality = str(header.get("Modality") or "")
    if kind := NO_IMAGE_CLASSES.get(str(storage)):
        return kind
    if modality in NO_IMAGE_MODALITIES:
        return modality
    uid = UID(str(storage or ""))
    other = "Image" not in uid.name and (uid.type == "SOP Class" or header.get("SeriesInstanceUID"))
    return (modality or "without pixels") if other and "Rows" not in header else None


def list_frames(path: Path, header: Any) -> list[Frame]:  # noqa: ANN401
    """Return the slices of a file: one, or as many as an enhanced multi-frame file has.

    Raises:
        DataError: it has several frames without a position each.
    """
    with refusing_unreadable(path):
        if "MOSAIC" in (header.get("ImageType") or ()):
            raise DataError(
                f"{path}: a mosaic, slices side by side in one picture; convert it to NIfTI "
                "(dcm2niix)"
            )
        count = 1
        if header.get("NumberOfFrames") is not None:
            count = read_integer(path, header, "NumberOfFrames")
        groups = header.get("PerFrameFunctionalGroupsSequence")
        if not groups:
            if count > 1:
                raise DataError(
                    f"{path}: several frames without a position each; convert it to one file per "
                    "slice"
                )
            return [Frame(path, None, header)]
        if len(groups) != count:
            raise DataError(
                f"{path}: {count} frames, but positions of {len(groups)}; restore the file"
            )
        shared = header.get("SharedFunctionalGroupsSequence") or ()
        return [
            Frame(path, number, _merge_groups(header, [*shared, group]))
            for number, group in enumerate(groups)
        ]


def _merge_groups(header: Any, groups: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return the attributes of one frame: those of its file and, above them, of its groups."""
    from pydicom import Dataset

    merged = Dataset()
    for tag in FRAME_TAGS:
        if tag in header:
            merged[tag] = header[tag]
    for group in groups:
        for name in GROUPS:
            for item in group.get(name) or ():
                merged.update(item)
    return merged


def read_integer(path: Path, header: Any, tag: str) -> int:  # noqa: ANN401
    """Return a whole number above 0 of a header."""
    value = read_numbers(path, header, tag, 1)[0]
    if value < 1 or value != int(value):
        raise DataError(f"{path}: {tag} is {value:g}; restore it")
    return int(value)


def read_numbers(path: Path, header: Any, tag: str, count: int) -> NDArray[np.float64]:  # noqa: ANN401
    """Return the numbers of an attribute, which must be `count` finite ones."""
    try:
        value = header[tag].value
        if value is None or value == "":
            raise KeyError(tag)
        values = np.array(value, np.float64).reshape(-1)
        if len(values) != count or not np.isfinite(values).all():
            raise ValueError(f"{len(values)} numbers, or not finite")
    except KeyError:
        raise DataError(f"{path}: no {tag}; give a series that has it, or pictures") from None
    except Exception as error:  # pydicom parses only now.
        reason = first_line(error)[:80]
        raise DataError(f"{path}: {tag} is no {count} numbers ({reason}); restore it") from error
    return values


def _common_folder(files: Sequence[Path]) -> Path:
    """Return the deepest folder that holds all files, in it or below."""
    first, *others = files
    return next(up for up in first.parents if all(path.is_relative_to(up) for path in others))
