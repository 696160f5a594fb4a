"""DICOM segmentations and RT structure sets that refer to the series they were made of.

pydicom and highdicom are imported only where they are needed.
"""

import contextlib
import datetime
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from attnseg.errors import DataError, first_line
from attnseg.prediction.dicom_headers import UID_PATTERN, Frame, read_dicom, read_numbers

LONGEST_NAME = 64  # characters that DICOM allows in the name of a segment, region or program
CLEAR = 0.05  # smallest distance of a channel from the centre of a pixel, pixels
NEEDED_UIDS = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")
# Attributes that results must have but may leave empty, as in de-identified series.
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"  # storage class
STUDY = "1.2.840.10008.3.1.2.3.1"  # storage class by which structure sets refer to a study


@dataclass(frozen=True)
class Origin:
    """The makers of a result.

    Attributes:
        name: name of the network and its run.
        version: version of this program.
        identity: digest of input and settings, from which the UIDs are derived.
    """

    name: str
    version: str
    identity: str


def find_obstacle(frames: Sequence[Frame], kind: str) -> str | None:
    """Return why DICOM allows no result for a series; `None` if it does.

    Args:
        frames: the slices.
        kind: `dicom_seg` or `rtstruct`.
    """
    for tag in NEEDED_UIDS:
        if not all(UID_PATTERN.fullmatch(str(frame.header.get(tag) or "")) for frame in frames):
            return f"no {tag}"
    owners: dict[str, Path] = {}
    for frame in frames:
        if owners.setdefault(str(frame.header.SOPInstanceUID), frame.path) != frame.path:
            return f"{frame.path.name} has the SOPInstanceUID of another slice"
    several = any(frame.number is not None for frame in frames)
    if kind == "dicom_seg" and several and len(owners) > 1:
        return "several files of several frames"
    return None


def write_segmentation(
    file: BinaryIO,
    masks: NDArray[np.bool_],
    frames: Sequence[Frame],
    classes: Sequence[str],
    origin: Origin,
) -> None:
    """Write masks to `file` as a DICOM segmentation that refers to its series.

    Args:
        file: open file.
        masks: `[classes, columns, rows, slices]`, as `read_series` returns voxels.
        frames: the slices, in order.
        classes: names of the segments.
        origin: the makers.

    Raises:
        DataError: headers from which no segmentation can be made.
    """
    import highdicom as hd
    from pydicom.uid import generate_uid

    pixels = np.ascontiguousarray(masks.transpose(3, 2, 1, 0), np.uint8)
    if frames[0].number is not None:  # Its frames are taken in the order of the file.
        pixels = pixels[np.argsort([frame.number or 0 for frame in frames])]
    path = frames[0].path
    try:
        sources = [_read_source(each) for each in dict.fromkeys(frame.path for frame in frames)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom warns of empty masks,
            logging.getLogger("highdicom").setLevel(logging.ERROR)  # in two ways.
            segmentation = hd.seg.Segmentation(
                source_images=sources,
                pixel_array=pixels,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_describe_segments(classes, origin),
                series_instance_uid=generate_uid(entropy_srcs=[origin.identity, "series"]),
                series_number=1,
                sop_instance_uid=generate_uid(entropy_srcs=[origin.identity, "instance"]),
                instance_number=1,
                manufacturer="attnseg",
                manufacturer_model_name=origin.name,
                software_versions=origin.version,
                device_serial_number="0",
                series_description="Segmentation by attnseg",
            )
            segmentation.save_as(file)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # Headers can be wrong in any way.
        raise DataError(
            f"{path}: headers that highdicom refuses ({first_line(error)[:120]})"
        ) from error


def _read_source(path: Path) -> Any:  # noqa: ANN401
    """Return a file's header with the attributes that a segmentation copies, all of them valid.

    An invalid value is removed; where the result needs the attribute, it is empty.
    """
    from pydicom.config import RAISE
    from pydicom.valuerep import validate_value

    header = read_dicom(path)
    for tag in list(header.keys()):
        try:
            element = header[tag]
            values = element.value if element.VM > 1 else [element.value]
            for value in values if element.VR not in ("SQ", "OB", "OW", "UN") else ():
                if isinstance(value, str):
                    validate_value(element.VR, str(value), RAISE)
        except Exception:  # There are as many kinds as parsers of values.
            del header[tag]
    with contextlib.suppress(Exception):
        header.decode()
    header.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, for names of patients and of classes
    if header.get("PatientSex") not in ("M", "F", "O"):
        header.PatientSex = ""
    for name in MAY_BE_EMPTY:
        if header.get(name) is None:
            setattr(header, name, "")
    return header


def _describe_segments(classes: Sequence[str], origin: Origin) -> list[Any]:
    """Return the description of each class's segment, with the algorithm that made it."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    labels = [name.replace("\\", "/")[:LONGEST_NAME] for name in classes]
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=hd.sr.CodedConcept(f"class{number}", "99ATTNSEG", label),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name=origin.name, version=origin.version, family=codes.DCM.ArtificialIntelligence
            ),
        )
        for number, label in enumerate(labels, 1)
    ]


def write_structure_set(
    file: BinaryIO,
    masks: NDArray[np.bool_],
    frames: Sequence[Frame],
    classes: Sequence[str],
    origin: Origin,
) -> None:
    """Write the outlines of masks to `file` as an RT structure set that refers to its series.

    Outlines run midway between the centres of pixels within and without. A hole is joined to the
    outline around it by a channel without width, as PS3.3, C.8.8.6.3 asks. Arguments as for
    `write_segmentation`.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, generate_uid

    source = _read_source(frames[0].path)
    made = Dataset()
    for name in (*MAY_BE_EMPTY, "StudyInstanceUID", "FrameOfReferenceUID"):
        made[name] = source[name]
    made.SpecificCharacterSet = source.SpecificCharacterSet
    made.PositionReferenceIndicator = made.OperatorsName = ""
    made.SOPClassUID = STRUCTURE_SET
    made.SOPInstanceUID = generate_uid(entropy_srcs=[origin.identity, "instance"])
    made.SeriesInstanceUID = generate_uid(entropy_srcs=[origin.identity, "series"])
    made.Modality, made.SeriesNumber, made.InstanceNumber = "RTSTRUCT", 1, 1
    made.SeriesDescription = "Segmentation by attnseg"
    made.Manufacturer, made.ManufacturerModelName = "attnseg", origin.name[:LONGEST_NAME]
    made.SoftwareVersions, made.StructureSetLabel = origin.version, "attnseg"
    now = datetime.datetime.now()
    made.StructureSetDate, made.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    made.ReferencedFrameOfReferenceSequence = [_refer_to_series(frames, source)]
    regions = [
        _describe_region(number, name, mask, frames, origin)
        for number, (name, mask) in enumerate(zip(classes, masks, strict=True), 1)
    ]
    made.StructureSetROISequence = [region for region, _, _ in regions]
    made.ROIContourSequence = [outlines for _, outlines, _ in regions]
    made.RTROIObservationsSequence = [observation for _, _, observation in regions]
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # has no limit for long outlines
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.save_as(file, enforce_file_format=True)


def _describe_region(
    number: int, name: str, mask: NDArray[np.bool_], frames: Sequence[Frame], origin: Origin
) -> tuple[Any, Any, Any]:
    """Return the three items by which a structure set holds a class: name, outlines, meaning."""
    region = _dataset(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=frames[0].header.FrameOfReferenceUID,
        ROIName=name.replace("\\", "/")[:LONGEST_NAME],
        ROIGenerationAlgorithm="AUTOMATIC",
        ROIGenerationDescription=origin.name[:LONGEST_NAME],
    )
    contours = _dataset(ReferencedROINumber=number)
    if outlines := [
        outline
        for frame, plane in zip(frames, mask.T, strict=True)
        for outline in _outline_slice(frame, plane)
    ]:
        contours.ContourSequence = outlines
    observation = _dataset(
        ObservationNumber=number,
        ReferencedROINumber=number,
        RTROIInterpretedType="",
        ROIInterpreter="",
    )
    return region, contours, observation


def _dataset(**values: object) -> Any:  # noqa: ANN401
    """Return a dataset of some attributes."""
    from pydicom.dataset import Dataset

    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def _refer_to_slice(frame: Frame) -> Any:  # noqa: ANN401
    reference = _dataset(
        ReferencedSOPClassUID=frame.header.SOPClassUID,
        ReferencedSOPInstanceUID=frame.header.SOPInstanceUID,
    )
    if frame.number is not None:
        reference.ReferencedFrameNumber = frame.number + 1
    return reference


def _refer_to_series(frames: Sequence[Frame], source: Any) -> Any:  # noqa: ANN401
    """Return the item by which a structure set refers to the series and its slices."""
    series = _dataset(
        SeriesInstanceUID=source.SeriesInstanceUID,
        ContourImageSequence=[_refer_to_slice(frame) for frame in frames],
    )
    study = _dataset(
        ReferencedSOPClassUID=STUDY,
        ReferencedSOPInstanceUID=source.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _dataset(
        FrameOfReferenceUID=source.FrameOfReferenceUID, RTReferencedStudySequence=[study]
    )


def _outline_slice(frame: Frame, mask: NDArray[np.bool_]) -> list[Any]:
    """Return the outlines of a mask `[rows, columns]`, each as an item in the patient's mm."""
    corner = read_numbers(frame.path, frame.header, "ImagePositionPatient", 3)
    axes = read_numbers(frame.path, frame.header, "ImageOrientationPatient", 6).reshape(2, 3)
    axes /= np.linalg.norm(axes, axis=1)[:, None]
    rows, columns = read_numbers(frame.path, frame.header, "PixelSpacing", 2)
    items = []
    for outline in trace_outlines(mask):
        points = corner + outline[:, :1] * columns * axes[0] + outline[:, 1:] * rows * axes[1]
        items.append(
            _dataset(
                ContourImageSequence=[_refer_to_slice(frame)],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourData=[f"{value:.4f}" for value in points.reshape(-1)],
            )
        )
    return items


def trace_outlines(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """Yield a mask's outlines `[points, 2]`, x and y in pixels, each with its holes joined to it.

    The centres of exactly the mask's pixels lie within an odd number of turns of the outlines.
    """
    from contourpy import FillType, contour_generator

    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(np.float64)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    for points, offsets in zip(*generator.filled(0.5, 2), strict=True):
        rings = [points[start : stop - 1] - 1 for start, stop in pairwise(offsets)]
        outline, *holes = rings
        for hole in holes:
            at, there = _choose_channel(outline, hole)
            turned = np.roll(hole, -there, axis=0)
            outline = np.concatenate([outline[: at + 1], turned, turned[:1], outline[at:]])
        yield outline


def _choose_channel(outline: NDArray[np.float64], hole: NDArray[np.float64]) -> tuple[int, int]:
    """Return the nearest points of two rings whose connection meets no centre of a pixel."""
    apart = np.linalg.norm(outline[:, None] - hole[None], axis=2)
    nearest = np.argsort(apart, axis=None, kind="stable")
    for flat in nearest:
        at, there = divmod(int(flat), len(hole))
        start, step = outline[at], hole[there] - outline[at]
        low, high = np.sort([start, hole[there]], axis=0)
        (left, top), (right, bottom) = np.floor(low).astype(int), np.ceil(high).astype(int) + 1
        centres = np.mgrid[left:right, top:bottom].reshape(2, -1).T - start
        share = (centres @ step / max(float(step @ step), 1e-9)).clip(0, 1)
        if np.linalg.norm(centres - share[:, None] * step, axis=1).min() > CLEAR:
            return at, there
    return divmod(int(nearest[0]), len(hole))
