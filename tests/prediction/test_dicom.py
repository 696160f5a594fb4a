"""DICOM series: sorted by position, checked, and answered with a segmentation in the same place."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MediaStorageDirectoryStorage,
    generate_uid,
)

from attnseg.errors import ConfigError, DataError
from attnseg.prediction.dicom import read_series
from tests.prediction.made import organ, segment

SPACING = (0.8, 1.4)  # rows, columns: from row to row, from column to column
STEP = 2.5
TURN = nib.eulerangles.euler2mat(0.25, -0.1, 0.3)
ORIGIN = np.array([-30.0, 12.5, 70.0])


def header(voxels: np.ndarray, index: int, series: str, turn: np.ndarray) -> pydicom.Dataset:
    """A CT slice; `voxels` `[slices, rows, columns]` lie along the turned axes of the patient."""
    made = pydicom.Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    uid = generate_uid(entropy_srcs=[series, str(index)])
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uid
    made.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
    made.StudyInstanceUID, made.FrameOfReferenceUID = (
        generate_uid(entropy_srcs=[what]) for what in ("study", "frame")
    )
    made.PatientID = made.PatientName = "007"
    made.PatientBirthDate = made.PatientSex = made.StudyID = made.AccessionNumber = ""
    made.StudyDate, made.StudyTime, made.Modality = "20200101", "120000", "CT"
    made.SeriesNumber, made.InstanceNumber = 3, 500 - 7 * index  # no help with the order
    made.ReferringPhysicianName = made.PositionReferenceIndicator = ""
    made.Rows, made.Columns = voxels.shape[1:]
    made.PixelSpacing = list(SPACING)
    made.SliceThickness = STEP
    made.ImageOrientationPatient = [*turn[:, 0].round(8), *turn[:, 1].round(8)]
    made.ImagePositionPatient = (ORIGIN + turn[:, 2] * STEP * index).round(6).tolist()
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 0
    made.RescaleSlope, made.RescaleIntercept = 1, 0
    made.PixelData = voxels[index].astype(np.uint16).tobytes()
    return made


def write(
    folder: Path,
    voxels: np.ndarray,
    series: str = "one",
    turn: np.ndarray = TURN,
    edit: Callable[[int, pydicom.Dataset], None] = lambda index, made: None,
) -> None:
    """Write a series in shuffled order, names without a meaning."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(1).permutation(len(voxels))
    for index in range(len(voxels)):
        made = header(voxels, index, series, turn)
        edit(index, made)
        made.save_as(folder / f"IM{names[index]:03}", enforce_file_format=True)


def in_space(segmentation: hd.seg.Segmentation) -> dict[tuple[float, ...], int]:
    """The value of segment 1 at each point in space, mm, of the frames as they say they lie."""
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows, columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    found = {}
    for group, frame in zip(segmentation.PerFrameFunctionalGroupsSequence, frames, strict=True):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for (r, c), value in np.ndenumerate(frame):
            place = corner + orientation[:3] * columns * c + orientation[3:] * rows * r
            if value:
                found[tuple(place.round(2) + 0.0)] = int(value)
    return found


@pytest.mark.parametrize(
    "turn",
    [np.eye(3), TURN, np.eye(3)[:, [1, 2, 0]], -np.eye(3)[:, [0, 2, 1]], TURN[:, [2, 0, 1]]],
    ids=["axial", "tilted", "sagittal", "coronal from behind", "tilted sagittal"],
)
def test_a_threshold_gives_the_truth_in_space(tmp_path, turn):
    turn = turn if np.linalg.det(turn) > 0 else turn * [1, 1, -1]
    voxels = organ((5, 7, 9))
    write(tmp_path / "in/a", voxels, turn=turn)
    # An odd multiple of each side, whichever the slices have: exact at the middle of each pixel.
    segment(tmp_path / "in", tmp_path / "out", size=(315, 315))
    made = hd.seg.segread(tmp_path / "out/masks/a.dcm")
    expected = set()
    for k, r, c in np.argwhere(voxels > 100):
        at = ORIGIN + turn @ (c * SPACING[1], r * SPACING[0], k * STEP)
        expected.add(tuple(at.round(2) + 0.0))
    found = in_space(made)
    assert len(found) == len(expected)
    near = np.array(sorted(found)) - np.array(sorted(expected))
    assert np.abs(near).max() < 0.02
    assert made.SegmentSequence[0].SegmentLabel == "organ"


def test_the_segmentation_names_classes_and_refers_to_its_slices(tmp_path):
    voxels = organ((4, 8, 10))
    write(tmp_path / "in", voxels)
    segment(tmp_path / "in", tmp_path / "out", classes=("Dünndarm", "dark"))
    made = hd.seg.segread(tmp_path / "out/masks/in.dcm")
    assert [made.get_segment_description(n).segment_label for n in (1, 2)] == ["Dünndarm", "dark"]
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "in").iterdir()}
    (series,) = made.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == sources
    assert made.PatientID == "007"
    for index in range(4):
        uid = header(voxels, index, "one", TURN).SOPInstanceUID
        pixels = made.get_pixels_by_source_instance([uid])[0]
        assert np.array_equal(pixels[..., 0] > 0, voxels[index] > 100)
        assert np.array_equal(pixels[..., 1] > 0, voxels[index] < 20)


def test_classes_may_overlap_and_may_be_empty(tmp_path):
    write(tmp_path / "in", np.full((3, 8, 10), 50))
    segment(tmp_path / "in", tmp_path / "out", classes=("bright", "dark"))
    made = hd.seg.segread(tmp_path / "out/masks/in.dcm")
    assert made.pixel_array.max() == 0


def test_series_of_one_folder_are_told_apart(tmp_path):
    for series in ("one", "two"):
        write(tmp_path / "part" / series, organ((3, 8, 10)), series)
        for path in list((tmp_path / "part" / series).iterdir()):
            shutil.move(path, tmp_path / "part" / f"{series}{path.name}")
    for series in ("one", "two"):
        shutil.rmtree(tmp_path / "part" / series)
        (tmp_path / "in/all").mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "part").iterdir():
        shutil.move(path, tmp_path / "in/all" / path.name)
    segment(tmp_path / "in", tmp_path / "out")
    uids = {str(generate_uid(entropy_srcs=[series])) for series in ("one", "two")}
    assert {path.stem for path in (tmp_path / "out/masks/all").iterdir()} == uids


def test_intensities_are_rescaled_and_monochrome1_turned(tmp_path):
    voxels = organ((3, 8, 10))

    def rescale(index, made):
        made.RescaleSlope, made.RescaleIntercept = 0.5 * (index + 1), -100
        made.PixelData = ((voxels[index] + 100) * 2 // (index + 1)).astype(np.uint16).tobytes()

    write(tmp_path / "rescaled", voxels, edit=rescale)

    def invert(index, made):
        made.PhotometricInterpretation, made.BitsStored, made.HighBit = "MONOCHROME1", 12, 11
        made.PixelData = (4095 - voxels[index]).astype(np.uint16).tobytes()

    write(tmp_path / "inverted", voxels, edit=invert)
    write(tmp_path / "plain", voxels)
    series = read_series(sorted((tmp_path / "plain").iterdir()))
    plain, affine = series.voxels, series.affine
    assert np.array_equal(plain, voxels.transpose(2, 1, 0))
    assert np.allclose(affine[:3, 3], ORIGIN * (-1, -1, 1))
    inverted = read_series(sorted((tmp_path / "inverted").iterdir())).voxels
    assert np.array_equal(inverted, plain)
    rescaled = read_series(sorted((tmp_path / "rescaled").iterdir())).voxels
    assert np.abs(rescaled - plain).max() <= 1.5  # rounded when written


def one(index: int, change: Callable[[pydicom.Dataset], None]):
    return lambda at, made: change(made) if at == index else None


def put(**values):
    def change(made):
        for name, value in values.items():
            setattr(made, name, value)

    return change


def garble(tag: str):
    def change(made):
        length = made[tag].VM
        made[tag] = pydicom.DataElement(tag, "LO", "\\".join(["garbage"] * length))

    return change


def several(made):
    made.NumberOfFrames = 2
    made.PixelData = made.PixelData * 2


def compressed(made):
    made.file_meta.TransferSyntaxUID = JPEG2000Lossless
    made.PixelData = pydicom.encaps.encapsulate([made.PixelData])
    made["PixelData"].is_undefined_length = True


def moved(index: int):
    def change(made):
        made.ImagePositionPatient = (ORIGIN + TURN[:, 2] * STEP * index).tolist()

    return change


ANOTHER = [*np.eye(3)[0], *np.eye(3)[1]]
FAULTS = {
    "a slice missing": (one(2, moved(2.9)), "one is missing"),
    "two at one position": (one(2, moved(1)), "at the same position as"),
    "mixed orientation": (one(2, put(ImageOrientationPatient=ANOTHER)), "another orientation"),
    "mixed spacing": (one(2, put(PixelSpacing=[1, 1])), "another pixel spacing"),
    "mixed size": (
        one(2, put(Rows=4, Columns=10, PixelData=b"\0" * 80)), "Rows ",
    ),
    "tilted gantry": (
        lambda at, made: put(
            ImagePositionPatient=(ORIGIN + STEP * at * (TURN[:, 2] + 0.3 * TURN[:, 1])).tolist()
        )(made),
        "not at right angles",
    ),
    "garbage for a position": (one(1, garble("ImagePositionPatient")), "ImagePositionPatient is"),
    "garbage for a slope": (one(1, garble("RescaleSlope")), "RescaleSlope is no"),
    "a slope of 0": (one(1, put(RescaleSlope=0)), "RescaleSlope is 0"),
    "no position": (lambda at, made: delattr(made, "ImagePositionPatient"), "no ImagePosition"),
    "several frames": (one(1, several), "several frames"),
    "no codec": (one(1, compressed), "no decoder for JPEG 2000"),
    "pixels cut off": (one(1, lambda made: put(PixelData=made.PixelData[:50])(made)), "pixels"),
    "colour": (
        lambda at, made: put(
            SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
            PixelData=made.PixelData * 3,
        )(made),
        "colour pixels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_series_that_is_not_sound_is_refused(tmp_path, fault):
    edit, message = FAULTS[fault]
    write(tmp_path / "in/bad", organ((5, 8, 10)), edit=edit)
    write(tmp_path / "in/good", organ((5, 8, 10)), series="good")
    with pytest.raises(DataError) as error:
        segment(tmp_path / "in", tmp_path / "out")
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "in/bad"))
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["good.dcm"]


def test_files_cut_off_and_files_without_an_image(tmp_path, capfd):
    write(tmp_path / "in/good", organ((3, 8, 10)))
    whole = next((tmp_path / "in/good").iterdir()).read_bytes()
    (tmp_path / "in/cut.dcm").write_bytes(whole[:300])
    (tmp_path / "in/text.dcm").write_text("no DICOM")
    directory = pydicom.dcmread(next((tmp_path / "in/good").iterdir()))
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.save_as(tmp_path / "in/DICOMDIR")
    with pytest.raises(DataError, match="2 problems"):
        segment(tmp_path / "in", tmp_path / "out")
    told = capfd.readouterr().err
    assert "cut.dcm: " in told
    assert "text.dcm: no NIfTI, DICOM or picture by its content" in told
    assert "DICOMDIR" not in told


@pytest.mark.parametrize("name", ["pydicom", "highdicom"])
def test_dicom_where_its_readers_are_not_installed(tmp_path, monkeypatch, name):
    write(tmp_path / "in", organ((3, 8, 10)))
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"{name} is not installed; pip install"):
        segment(tmp_path / "in", tmp_path / "out")


def test_a_uid_that_is_a_path(tmp_path):
    write(tmp_path / "in", organ((3, 8, 10)), edit=lambda at, made: put(
        SeriesInstanceUID="../../escape"
    )(made))  # fmt: skip
    with pytest.raises(DataError, match="problems"):
        segment(tmp_path / "in", tmp_path / "out")
    assert not list(tmp_path.glob("escape*"))
