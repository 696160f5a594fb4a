"""Datasets as others leave them: the Decathlon, mixed endings, linked folders, odd counts."""

import json
import logging

import numpy as np
import pytest

from attnseg.data.reader import check_case
from attnseg.data.readers.nnunet import NNUNet
from attnseg.data.store import prepare_cases
from attnseg.errors import DataError
from tests.data.refusals import check_all
from tests.data.test_nnunet import LABELS, SCAN, Dataset


class Task(Dataset):
    """A task of the Decathlon: the list of its files stands in dataset.json."""

    def __init__(self, root, channels=("CT",), cases=("liver_0", "liver_1")):
        super().__init__(root)
        self.channels = channels
        self.content = {
            "name": "Liver", "tensorImageSize": "3D" if len(channels) == 1 else "4D",
            "modality": {str(n): name for n, name in enumerate(channels)},
            "labels": {"0": "background", "1": "liver", "3": "cyst", "2": "cancer"},
            "numTraining": len(cases), "numTest": 1, "test": ["./imagesTs/liver_9.nii.gz"],
            "training": [
                {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
                for case in cases
            ],
        }  # fmt: skip
        scan = SCAN if len(channels) == 1 else np.stack([SCAN + n for n in range(len(channels))])
        for case in cases:
            self.write(f"imagesTr/{case}", scan).write(f"labelsTr/{case}", LABELS)
        self.write("imagesTs/liver_9", scan)

    def write(self, name, array, moved=0.0):
        if array.ndim == 3:
            return super().write(name, array, moved)
        return super().write(name, Turned(array))


class Turned:
    """Channels first, which `Dataset.write` turns as if they were one volume."""

    def __init__(self, array):
        self.array = array

    def transpose(self, *axes):
        return self.array.transpose(*(axis + 1 for axis in axes), 0)


@pytest.mark.parametrize("channels", [("CT",), ("T2", "ADC"), ("FLAIR", "T1w", "t1gd", "T2w")])
def test_the_decathlon_as_downloaded(tmp_path, caplog, channels):
    data = Task(tmp_path / "Task03_Liver", channels)
    for name in ("imagesTr/._liver_0.nii.gz", "labelsTr/._liver_0.nii.gz", "._dataset.json"):
        (data.root / name).write_bytes(b"\0\5\26\7")
    caplog.set_level(logging.INFO, "attnseg")
    case = data.read()
    expected = np.stack([SCAN + n for n in range(len(channels))], -1)
    assert np.array_equal(case.image, expected)
    assert np.array_equal(case.mask, LABELS)
    assert case.spacing == pytest.approx((4, 0.75, 0.5))
    reader = data.reader()
    assert (reader.classes, reader.channels) == (("liver", "cancer", "cyst"), len(channels))
    assert [ref.case for ref in reader.cases()] == ["liver_0", "liver_1"]
    assert "imagesTs: 1 files without labels, left out: liver_9.nii.gz" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_version_1_of_nnunet_has_numbers_of_channels_in_its_names_only(tmp_path):
    data = Task(tmp_path, ("T1", "T2"), ("case_1",))
    (tmp_path / "imagesTr/case_1.nii.gz").unlink()
    data.write("imagesTr/case_1_0000", SCAN).write("imagesTr/case_1_0001", SCAN - 1)
    assert np.array_equal(data.read().image, np.stack([SCAN, SCAN - 1], -1))


def changed(**values):
    return lambda data: data.content.update(values)


def pairs(*entries):
    return changed(training=list(entries))


PAIR = {"image": "imagesTr/liver_0.nii.gz", "label": "labelsTr/liver_0.nii.gz"}
TASK_FAULTS = {
    "no list": (changed(training=None), "version 1 of nnU-Net; convert it"),
    "empty list": (pairs(), "version 1 of nnU-Net; convert it"),
    "no pair": (pairs("imagesTr/liver_0.nii.gz"), "training holds"),
    "no label": (pairs({"image": PAIR["image"]}), "training holds"),
    "label of another kind": (pairs(PAIR | {"label": "a.txt"}), "training holds"),
    "label a number": (pairs(PAIR | {"label": 3}), "training holds"),
    "a case twice": (pairs(PAIR, PAIR), "case of its own"),
    "a file missing": (pairs(PAIR | {"label": "labelsTr/x.nii.gz"}), "x.nii.gz: not found"),
    "out of the root": (pairs(PAIR | {"image": "../a.nii.gz"}), "a.nii.gz: lies outside of"),
    "modality missing": (changed(modality=None), "channel_names is missing"),
    "more channels than in the file": (changed(modality={"0": "a", "1": "b"}), "not a volume of"),
    "a name twice": (changed(labels={"0": "b", "1": "a", "2": "a"}), "no name of its own"),
    "a value no number": (changed(labels={"0": "b", "one": "a"}), "no name of its own"),
    "labels of lists": (changed(labels={"0": "b", "1": ["a"]}), "no name of its own"),
    "a label too many": (changed(labels={"0": "b", "1": "a"}), "unknown labels 2, 3"),
}


def test_faults_of_a_decathlon_task_are_named(tmp_path):
    def attempt(folder, edit):
        data = Task(folder / "root")
        data.write("../a", SCAN)
        edit(data)
        data.read()

    check_all(TASK_FAULTS, attempt, tmp_path)


@pytest.mark.parametrize(
    ("stated", "found"),
    [(".nii.gz", ".nii"), (".nii", ".nii.gz"), (".nii.gz", ".NII.GZ"), (".png", ".PNG"),
     (".png", ".bmp"), (".tif", ".png")],
)  # fmt: skip
def test_cases_with_another_ending_are_read_and_named(tmp_path, caplog, stated, found):
    volume = stated.startswith(".nii")
    scan, labels = (SCAN, LABELS) if volume else (SCAN[0].astype(np.uint8), LABELS[0])
    data = Dataset(tmp_path, stated, numTraining=3).case("a", (scan,), labels)
    data.case("b", (scan,), labels)
    data.ending = found.lower()
    data.case("c.1", (scan,), labels)
    data.ending = stated
    for path in (tmp_path / "imagesTr" / "c.1_0000", tmp_path / "labelsTr" / "c.1"):
        path.with_name(path.name + found.lower()).rename(path.with_name(path.name + found))
    reader = data.reader()
    refs = reader.cases()
    assert [ref.case for ref in refs] == ["a", "b", "c.1"]
    assert np.array_equal(reader.read(refs[2]).mask, reader.read(refs[0]).mask)
    assert f"imagesTr: 1 of 3 files do not end with {stated}" in caplog.text
    assert f"c.1_0000{found}" in caplog.text
    assert f"labelsTr: 1 of 3 files do not end with {stated}" in caplog.text


@pytest.mark.parametrize(("folder", "name"), [("imagesTr", "a_0000"), ("labelsTr", "a")])
def test_two_files_of_a_case_in_a_dataset_are_both_named(tmp_path, folder, name):
    data = Dataset(tmp_path).case("a")
    (tmp_path / folder / f"{name}.nii").touch()
    with pytest.raises(DataError, match=rf"{name}\.nii\.gz: {name}\.nii is of the same case"):
        data.reader().cases()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"numTraining": 3}, "says numTraining 3, found 2"),
        ({"numTraining": 0}, "says numTraining 0, found 2"),
        ({"numTraining": 2, "numTest": 4}, "says numTest 4, found 1"),
        ({"numTraining": 2, "numTest": 1}, ""),
        ({"numTraining": "two"}, ""),
        ({"numTraining": True}, ""),
    ],
)
def test_sizes_that_disagree_are_warned_of(tmp_path, caplog, sizes, message):
    data = Dataset(tmp_path, **sizes).case("a").case("b").case("c", part="Ts")
    assert len(data.reader().cases()) == 3
    assert bool(caplog.records) == bool(message)
    assert message in caplog.text


def test_cases_without_a_label_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "attnseg")
    data = Dataset(tmp_path).case("a")
    for number in range(12):
        data.write(f"imagesTs/t{number:02d}_0000", SCAN)
    (tmp_path / "imagesTr" / "b_0000.mha").touch()
    data.reader().cases()
    assert "12 files without labels, left out: t00_0000.nii.gz," in caplog.text
    assert "imagesTr: 1 passed over: b_0000.mha" in caplog.text
    for name in ("b", "c"):
        data.write(f"imagesTr/{name}_0000", SCAN)
    with pytest.raises(DataError) as error:
        data.reader().cases()
    assert [problem.split(";")[0] for problem in error.value.problems] == [
        f"{tmp_path}/labelsTr/{name}.nii.gz: not found" for name in "bc"
    ]


@pytest.mark.parametrize("names", [("imagesTr",), ("imagesTr", "labelsTr"), ("labelsTr",), ()])
def test_folders_may_be_links_to_another_disk(tmp_path, names):
    data = Dataset(tmp_path / "disk").case("a")
    root = tmp_path / "linked"
    root.mkdir()
    data.reader()
    for path in data.root.iterdir():
        target = root / path.name
        target.symlink_to(path) if path.name in names else path.rename(target)
    if not names:  # the whole dataset
        (tmp_path / "all").symlink_to(root)
        root = tmp_path / "all"
    reader = NNUNet(root)
    (ref,) = reader.cases()
    case = reader.read(ref)
    check_case(case, ref, reader)
    assert np.array_equal(case.mask, LABELS)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(p)\d_\w", "makes all 3 cases those of one patient, 'p'"),
        (r"(.*)", "gives each of the 3 cases a patient of its own"),
        (r"(p\d)_\w", ""),
    ],
)
def test_a_pattern_of_patients_that_groups_all_or_nothing(tmp_path, caplog, pattern, message):
    data = Dataset(tmp_path, numTraining=3).case("p1_a").case("p1_b").case("p2_a")
    data.reader(patient=pattern).cases()
    assert bool(caplog.records) == bool(message)
    assert message in caplog.text


@pytest.mark.parametrize("stated", [".hdr", ".nii.gz"])
def test_pairs_of_header_and_voxels_are_cases(tmp_path, caplog, stated):
    caplog.set_level(logging.INFO, "attnseg")
    data = Dataset(tmp_path / "root", ".hdr", numTraining=2).case("a").case("b.1")
    data.content["file_ending"] = data.ending = stated
    if stated != ".hdr":
        data.case("c")
    reader = data.reader()
    refs = reader.cases()
    assert [ref.case for ref in refs] == ["a", "b.1", "c"][: len(refs)]
    for ref in refs:
        assert np.array_equal(reader.read(ref).image[..., 0], SCAN)
        assert np.array_equal(reader.read(ref).mask, LABELS)
    assert "passed over" not in caplog.text
    (before, *_) = prepare_cases(reader, refs, tmp_path / "store")
    voxels = tmp_path / "root/imagesTr/a_0000.img"
    voxels.write_bytes(voxels.read_bytes()[::-1])  # a change that the header does not show
    (after, *_) = prepare_cases(reader, refs, tmp_path / "store")
    assert before.digest != after.digest
    voxels.rename(tmp_path / "elsewhere.img")
    voxels.symlink_to(tmp_path / "elsewhere.img")
    with pytest.raises(DataError, match=r"a_0000\.img: lies outside of"):
        reader.cases()
    voxels.unlink()
    with pytest.raises(DataError, match=r"the header of a pair without its \.img file; restore"):
        reader.read(refs[0])


def test_names_of_cases_may_be_as_long_as_file_systems_allow(tmp_path):
    data = Dataset(tmp_path / "root", numTraining=2)
    for name in ("肝" * 74 + "a", "肝" * 74 + "b"):
        data.case(name)
    reader = data.reader()
    cases = prepare_cases(reader, reader.cases(), tmp_path / "store")
    assert len({case.folder for case in cases}) == 2
    again = prepare_cases(reader, reader.cases(), tmp_path / "store")
    assert again == cases


def test_the_dataset_of_a_task_is_described_as_json(tmp_path):
    data = Task(tmp_path)
    reader = data.reader()
    assert json.loads(reader.source(reader.cases()[0])) == {"0": 0, "1": 1, "2": 2, "3": 3}
