"""DICOM: what docs/formats.md says of each field, multi-frame files, and results of all kinds."""

import io
import re

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import generate_uid

from attnseg.errors import DataError, Problems
from attnseg.prediction.dicom import read_series
from attnseg.prediction.dicom_headers import group_series
from attnseg.prediction.dicom_results import trace_outlines
from tests.data.test_formats import rows
from tests.prediction.made import organ, segment
from tests.prediction.test_dicom import ORIGIN, SPACING, STEP, TURN, header, in_space, put, write

VOXELS = organ((3, 8, 10)) + 20


def everywhere(**values):
    return lambda at, made: put(**values)(made)


def in_one(**values):
    return lambda at, made: put(**values)(made) if at == 1 else None


def table(at, made):
    """Stored values become 2 x value + 7."""
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [512, 0, 16], "US"
    item["LUTDescriptor"].VR = "US"
    item.add_new("LUTData", "OW", (np.arange(512) * 2 + 7).astype("<u2").tobytes())
    made.ModalityLUTSequence = [item]
    del made.RescaleSlope, made.RescaleIntercept


def bright(**values):
    """Padding in one corner of each slice."""

    def change(at, made):
        pixels = np.frombuffer(made.PixelData, np.uint16).copy()
        pixels[:5] = range(4000, values.get("PixelPaddingRangeLimit", 4000) + 1, 5) or 4000
        put(PixelData=pixels.tobytes(), **values)(made)

    return change


def framed(at, made):
    """The files of one frame each, with groups that place each as its own header does not."""
    shared, group = Dataset(), Dataset()
    for target, name, tags in (
        (shared, "PlaneOrientationSequence", ("ImageOrientationPatient",)),
        (shared, "PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
        (group, "PlanePositionSequence", ("ImagePositionPatient",)),
    ):
        item = Dataset()
        for tag in tags:
            item[tag] = made[tag]
        setattr(target, name, [item])
    group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 9.0 * at]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.NumberOfFrames = 1
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], [group]


CHANGES = {
    "SOPClassUID": lambda at, made: (
        put(SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")(made),
        made.file_meta.__setattr__("MediaStorageSOPClassUID", made.SOPClassUID),
    ),
    "Modality": everywhere(Modality="RTDOSE"),
    "ImageType": everywhere(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]),
    "SeriesInstanceUID": in_one(SeriesInstanceUID="1.2.3"),
    "PatientID": in_one(PatientID="008"),
    "PatientName": in_one(PatientName="B^A"),
    "PatientBirthDate": in_one(PatientBirthDate="19700101"),
    "StudyInstanceUID": in_one(StudyInstanceUID="1.2.3"),
    "FrameOfReferenceUID": in_one(FrameOfReferenceUID="1.2.3"),
    "RescaleType": in_one(RescaleType="HU"),
    "Units": in_one(Units="BQML"),
    "Rows": in_one(Rows=7),
    "Columns": in_one(Columns=9),
    "SamplesPerPixel": everywhere(SamplesPerPixel=3),
    "PhotometricInterpretation": everywhere(PhotometricInterpretation="MONOCHROME1"),
    "BitsStored": everywhere(BitsStored=6, HighBit=5),
    "HighBit": everywhere(HighBit=14),
    "PixelRepresentation": lambda at, made: put(
        PixelRepresentation=1, PixelData=(VOXELS[at] - 99).astype(np.int16).tobytes()
    )(made),
    "RescaleSlope": everywhere(RescaleSlope=3),
    "RescaleIntercept": everywhere(RescaleIntercept=-1024),
    "ModalityLUTSequence": table,
    "PixelPaddingValue": bright(PixelPaddingValue=4000),
    "PixelPaddingRangeLimit": bright(PixelPaddingValue=4000, PixelPaddingRangeLimit=4020),
    "ImagePositionPatient": lambda at, made: put(
        ImagePositionPatient=(ORIGIN + TURN[:, 2] * 4 * at).tolist()
    )(made),
    "ImageOrientationPatient": everywhere(
        ImageOrientationPatient=[*TURN[:, 1].round(8), *-TURN[:, 0].round(8)]
    ),
    "PixelSpacing": everywhere(PixelSpacing=[0.9, 1.7]),
    "SliceThickness": everywhere(SliceThickness=1),
    "NumberOfFrames": in_one(NumberOfFrames=2),
    "SharedFunctionalGroupsSequence": framed,
    "PerFrameFunctionalGroupsSequence": framed,
    "SpacingBetweenSlices": everywhere(SpacingBetweenSlices=-7),
    "SliceLocation": everywhere(SliceLocation=9),
    "InstanceNumber": everywhere(InstanceNumber=1),
    "GantryDetectorTilt": everywhere(GantryDetectorTilt=20),
    "WindowCenter": everywhere(WindowCenter=40),
    "WindowWidth": everywhere(WindowWidth=40),
    "VOILUTSequence": everywhere(VOILUTSequence=[Dataset()]),
    "PresentationLUTShape": everywhere(PresentationLUTShape="INVERSE"),
    "RealWorldValueMappingSequence": everywhere(RealWorldValueMappingSequence=[Dataset()]),
    "ImagerPixelSpacing": everywhere(ImagerPixelSpacing=[1, 1]),
    "NominalScannedPixelSpacing": everywhere(NominalScannedPixelSpacing=[1, 1]),
}
REFUSED = {  # Other values of fields that are applied.
    "no table for the intercept": lambda at, made: made.__delattr__("RescaleIntercept"),
    "infinite": everywhere(RescaleSlope="1e300"),
    "a spacing of zero": everywhere(PixelSpacing=[0, 1]),
    "a negative spacing": everywhere(PixelSpacing=[1, -1]),
    "no spacing": everywhere(PixelSpacing=None),
    "directions of no unit": everywhere(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]),
    "directions of length 0": everywhere(ImageOrientationPatient=[0, 0, 0, 0, 1, 0]),
    "oblique directions": everywhere(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]),
    "parallel directions": everywhere(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
    "a slice beside the others": in_one(
        ImagePositionPatient=(ORIGIN + TURN @ [0, 3, STEP]).tolist()
    ),
    "a palette": everywhere(PhotometricInterpretation="PALETTE COLOR"),
    "colour": everywhere(PhotometricInterpretation="YBR_FULL"),
    "no interpretation": lambda at, made: made.__delattr__("PhotometricInterpretation"),
    "several rows": everywhere(Rows=[8, 8]),
    "no columns": lambda at, made: made.__delattr__("Columns"),
    "half a column": everywhere(Columns=None),
    "no frames": everywhere(NumberOfFrames=0),
}


def judge(folder, edit):
    """Return what is done with a change, and the series."""
    write(folder, VOXELS, edit=edit)
    files, problems = sorted(folder.iterdir()), Problems()
    series, others = group_series(files, problems)
    assert not problems.found
    if others:
        return "passed over", None
    if len(series) > 1:
        return "applied", None
    try:
        volume = read_series(files)
    except DataError as error:
        message = str(error)
        assert message.startswith(str(folder))
        assert "; " in message
        return "refused", None
    assert all(line.startswith(str(folder)) for line in volume.warnings)
    return "warned of" if volume.warnings else "", volume


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return judge(tmp_path_factory.mktemp("plain"), lambda at, made: None)[1]


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_is_done_with_as_the_page_says(tmp_path, plain, field):
    listed = {name: done for names, done in rows("DICOM") for name in re.findall(r"`(\w+)`", names)}
    assert set(listed) == set(CHANGES)
    done, volume = judge(tmp_path / "a", CHANGES[field])
    if volume is not None:
        same = np.array_equal(plain.voxels, volume.voxels)
        same &= np.allclose(plain.affine, volume.affine)
        done = done or ("ignored" if same else "applied")
    assert done == listed[field]
    if volume is not None and field != "PhotometricInterpretation":
        planes = [pydicom.dcmread(frame.path) for frame in volume.frames]
        theirs = np.stack([apply_modality_lut(each.pixel_array, each) for each in planes])
        inside = theirs.transpose(2, 1, 0) < 4000
        assert np.array_equal(volume.voxels[inside], theirs.transpose(2, 1, 0)[inside])
        assert volume.voxels.max() < 4000


@pytest.mark.parametrize("fault", REFUSED)
def test_values_that_mean_nothing_are_refused(tmp_path, fault):
    assert judge(tmp_path / "a", REFUSED[fault])[0] == "refused"


def test_hounsfield_units_are_not_turned(tmp_path):
    edit = everywhere(PhotometricInterpretation="MONOCHROME1", RescaleIntercept=-1000)
    done, volume = judge(tmp_path / "a", edit)
    assert done == "warned of"
    assert np.array_equal(volume.voxels, VOXELS.transpose(2, 1, 0) - 1000.0)


def enhance(path, voxels, slopes=None):
    """Write an enhanced CT of all slices, its frames in another order than in space."""
    order = np.random.default_rng(0).permutation(len(voxels))
    made = header(voxels, 0, "enhanced", TURN)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    made.NumberOfFrames, groups = len(voxels), []
    for at in order:
        group = Dataset()
        group.PlanePositionSequence, group.PixelValueTransformationSequence = (
            [Dataset()],
            [Dataset()],
        )
        place = (ORIGIN + TURN[:, 2] * STEP * at).round(6).tolist()
        group.PlanePositionSequence[0].ImagePositionPatient = place
        values = group.PixelValueTransformationSequence[0]
        values.RescaleSlope = 1 if slopes is None else slopes[at]
        values.RescaleIntercept, values.RescaleType = (0 if slopes is None else int(at)), "HU"
        groups.append(group)
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    orientation = made.ImageOrientationPatient
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = orientation
    shared.PixelMeasuresSequence[0].PixelSpacing = list(SPACING)
    shared.PixelMeasuresSequence[0].SliceThickness = STEP
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], groups
    for name in ("RescaleSlope", "RescaleIntercept", "PixelSpacing", "SliceThickness",
                 "ImagePositionPatient", "ImageOrientationPatient"):  # fmt: skip
        del made[name]
    made.PixelData = voxels[order].astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def test_frames_of_enhanced_files_are_placed_and_rescaled_each(tmp_path):
    voxels = organ((5, 8, 10))
    slopes = [1, 2, 0.5, 3, 1]
    volume = read_series([enhance(tmp_path / "a.dcm", voxels, slopes)])
    expected = voxels * np.array(slopes)[:, None, None] + np.arange(5)[:, None, None]
    assert np.array_equal(volume.voxels, expected.transpose(2, 1, 0).astype(np.float32))
    theirs = hd.imread(tmp_path / "a.dcm").get_volume(apply_real_world_transform=False)
    assert np.allclose(np.sort(theirs.array, 0), np.sort(expected, 0))
    write(tmp_path / "b", voxels)
    single = read_series(sorted((tmp_path / "b").iterdir()))
    assert np.allclose(volume.affine, single.affine, atol=1e-5)


def test_an_enhanced_file_gets_the_segmentation_of_its_slices(tmp_path):
    voxels = organ((5, 8, 10))
    enhance(tmp_path / "in/a.dcm", voxels)
    write(tmp_path / "in/b", voxels)
    segment(tmp_path / "in", tmp_path / "out")
    found = [in_space(hd.seg.segread(path)) for path in sorted((tmp_path / "out/masks").iterdir())]
    assert found[0] == found[1]
    assert len(found[0]) == (voxels > 100).sum()


def test_frames_at_one_position_and_groups_that_lack_are_refused(tmp_path):
    path = enhance(tmp_path / "a.dcm", organ((4, 8, 10)))
    made = pydicom.dcmread(path)
    groups = made.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence
    made.save_as(path)
    with pytest.raises(DataError, match="at the same position as another of its frames"):
        read_series([path])
    del made.PerFrameFunctionalGroupsSequence[0]
    made.save_as(path)
    with pytest.raises(DataError, match="4 frames, but positions of 3; restore"):
        read_series([path])


def inside(outlines, shape):
    """Pixels whose centres lie within an odd number of outlines."""
    centres = np.argwhere(np.ones(shape))[:, ::-1]
    turns = np.zeros(len(centres), int)
    for outline in outlines:
        turns += Polygon(np.concatenate([outline, outline[:1]])).contains_points(centres)
    return (turns % 2 == 1).reshape(shape)


def test_outlines_hold_exactly_the_pixels_of_any_mask():
    rng = np.random.default_rng(0)
    masks = [rng.random((h, w)) < share for share in (0.1, 0.5, 0.9) for h, w in ((9, 7), (16, 21))]
    ring = np.zeros((12, 12), bool)
    ring[1:11, 1:11], ring[3:9, 3:9], ring[5:7, 5:7] = True, False, True
    for mask in (*masks, ring, np.ones((5, 4), bool), np.zeros((3, 3), bool)):
        assert np.array_equal(inside(list(trace_outlines(mask)), mask.shape), mask)


@pytest.mark.parametrize("several", [False, True])
def test_a_structure_set_holds_the_masks_in_space(tmp_path, several):
    voxels = organ((4, 8, 10))
    if several:
        enhance(tmp_path / "in/s.dcm", voxels)
    else:
        write(tmp_path / "in/s", voxels)
    segment(
        tmp_path / "in", tmp_path / "out", wanted={"output_type": "rtstruct"}, classes=("Ä", "b")
    )
    (result,) = (tmp_path / "out/masks").iterdir()
    made = pydicom.dcmread(result)
    assert (made.Modality, made.SOPClassUID) == ("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3")
    assert [str(item.ROIName) for item in made.StructureSetROISequence] == ["Ä", "b"]
    study = made.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert len(images) == 4
    for number, wanted in ((0, voxels > 100), (1, voxels < 20)):
        outlines = {}
        for contour in made.ROIContourSequence[number].ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            x, y, z = TURN.T @ (points - ORIGIN).T
            assert np.allclose(z, z[0], atol=1e-3)
            outline = np.stack([x / SPACING[1], y / SPACING[0]], 1)
            outlines.setdefault(round(z[0] / STEP), []).append(outline)
        found = [inside(outlines.get(at, []), voxels.shape[1:]) for at in range(4)]
        assert np.array_equal(found, wanted)


def drop(*tags):
    return lambda at, made: [made.__delattr__(tag) for tag in tags]


EMPTY = {
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["dicom_seg", "rtstruct"])
def test_what_may_be_empty_may_be_missing_or_invalid(tmp_path, kind):
    """Each alone, and all: as the anonymisers of trials leave series."""
    odd = {"PatientSex": b"Male", "PatientBirthDate": b"1970-1-1", "StudyDate": b"yesterday ",
           "StudyTime": b"noon", "PatientAge": b"old."}  # fmt: skip
    for tag in EMPTY:
        write(tmp_path / "in" / tag, VOXELS, tag, edit=drop(tag))

    def garble(at, made):
        for tag, value in odd.items():
            made.add_new(tag, "UN", value)

    write(tmp_path / "in/odd", VOXELS, "odd", edit=garble)
    write(tmp_path / "in/all", VOXELS, "all", edit=drop(*EMPTY, "PositionReferenceIndicator"))
    segment(tmp_path / "in", tmp_path / "out", wanted={"output_type": kind, "overlays": False})
    results = {path.stem: pydicom.dcmread(path) for path in (tmp_path / "out/masks").iterdir()}
    assert set(results) == {*EMPTY, "odd", "all"}
    for name, made in results.items():
        for tag in EMPTY if name == "all" else {name} & EMPTY:
            assert tag in made
            assert not made.get(tag)
    assert not results["odd"].PatientSex


@pytest.mark.parametrize("kind", ["dicom_seg", "rtstruct"])
def test_names_of_patients_and_classes_are_kept_in_any_script(tmp_path, caplog, recwarn, kind):
    names = {"ISO_IR 100": "Müller^Jörg", "ISO_IR 144": "Дима^Иван", "GB18030": "王^小东",
             "ISO_IR 192": "Ñandú^Zoë", "": "A^B"}  # fmt: skip
    for number, (script, name) in enumerate(names.items()):
        edit = everywhere(SpecificCharacterSet=script, PatientName=name)
        write(tmp_path / f"in/{number}", VOXELS, str(number), edit=edit)
    wanted = {"output_type": kind, "overlays": False}
    segment(tmp_path / "in", tmp_path / "out", classes=("肝臓",), wanted=wanted)
    for number, name in enumerate(names.values()):
        made = pydicom.dcmread(tmp_path / f"out/masks/{number}.dcm")
        assert made.PatientName == name
        segments = made.get("SegmentSequence") or made.StructureSetROISequence
        assert [s.get("SegmentLabel") or s.ROIName for s in segments] == ["肝臓"]
    assert not caplog.messages
    assert not [warning for warning in recwarn if "encod" in str(warning.message)]


NO_RESULT = {
    "FrameOfReferenceUID": drop("FrameOfReferenceUID"),
    "StudyInstanceUID": drop("StudyInstanceUID"),
    "SOPInstanceUID": everywhere(SOPInstanceUID=""),
    "the SOPInstanceUID of another": everywhere(SOPInstanceUID="1.2.3"),
}


@pytest.mark.parametrize("kind", ["dicom_seg", "rtstruct"])
@pytest.mark.parametrize("lack", NO_RESULT)
def test_where_dicom_allows_no_result_there_is_nifti_said_before(tmp_path, caplog, lack, kind):
    write(tmp_path / "in/s", VOXELS, edit=NO_RESULT[lack])
    said = []

    class Listener:
        def __call__(self, images):
            said.append([text for text in caplog.messages if "written as NIfTI" in text])
            return np.where(images > 0.5, 9.0, -9.0).astype(np.float32)

    segment(tmp_path / "in", tmp_path / "out", Listener(), wanted={"output_type": kind})
    assert said[0]
    assert lack.rpartition(" ")[0] in said[0][0]
    image = nib.load(tmp_path / "out/masks/s.nii.gz")
    volume = read_series(sorted((tmp_path / "in/s").iterdir()))
    assert np.allclose(image.affine, volume.affine, atol=1e-4)
    assert np.asarray(image.dataobj).any()


def test_headers_that_only_the_writer_refuses_end_as_nifti(tmp_path, monkeypatch, caplog):
    from attnseg.prediction import dicom_results

    write(tmp_path / "in/s", VOXELS)
    monkeypatch.setattr(dicom_results, "_describe_segments", lambda *_: 1 / 0)
    segment(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["s.nii.gz"]
    assert "headers that highdicom refuses (division by zero)" in caplog.text


@pytest.mark.parametrize("thickness", ["", 0, None])
def test_a_single_slice_of_unknown_thickness_is_segmented(tmp_path, thickness):
    write(tmp_path / "in/s", VOXELS[:1], edit=everywhere(SliceThickness=thickness))
    segment(tmp_path / "in", tmp_path / "out", size=(8, 10))
    made = pydicom.dcmread(tmp_path / "out/masks/s.dcm")
    assert np.array_equal(made.pixel_array.reshape(8, 10) > 0, VOXELS[0] > 100)
    assert '"ml": null' in (tmp_path / "out/manifest.json").read_text()
    with pytest.raises(DataError, match="SliceThickness is negative"):
        write(tmp_path / "bad", VOXELS[:1], edit=everywhere(SliceThickness=-1))
        read_series(list((tmp_path / "bad").iterdir()))


def test_objects_without_an_image_beside_a_series_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "in/s", VOXELS)
    for name, modality in (("dose", "RTDOSE"), ("plan", "RTPLAN"), ("more", "RTDOSE")):
        made = header(VOXELS, 0, generate_uid(), TURN)
        made.Modality = modality
        made.save_as(tmp_path / "in" / name, enforce_file_format=True)
    segment(tmp_path / "in", tmp_path / "out")
    assert "DICOM files without an image: 2 RTDOSE, 1 RTPLAN; " in caplog.text
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["s.dcm"]


def test_an_unnamed_transfer_syntax_is_found(tmp_path):
    write(tmp_path / "a", VOXELS[:1])
    (path,) = (tmp_path / "a").iterdir()
    bare = pydicom.dcmread(path)
    for implicit in (False, True):
        stream = io.BytesIO()
        pydicom.dcmwrite(
            stream,
            Dataset(bare),
            implicit_vr=implicit,
            little_endian=True,
            enforce_file_format=False,
        )
        path.write_bytes(stream.getvalue())
        assert np.array_equal(read_series([path]).voxels, VOXELS[:1].transpose(2, 1, 0))
