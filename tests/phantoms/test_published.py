"""Phantoms of the published size: their numbers, and their content at a small size."""

import hashlib
from dataclasses import replace

import pytest

from attnseg.data import parallel
from attnseg.data.duplicates import find_duplicates
from attnseg.data.readers.acdc import ACDC
from attnseg.data.readers.isic2018 import ISIC2018
from attnseg.data.readers.nnunet import NNUNet
from attnseg.data.readers.synapse import Synapse
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.store import prepare_cases
from attnseg.phantoms import acdc, isic2018, nnunet, synapse, uw_madison

SMALL_SCANS = {"train": 5, "test": 2, "depths": (8, 9, 10, 11, 12, 13, 14)}
SMALL_FRAMES = ((72, 60, 5.0, 4.0), (64, 68, 5.0, 3.0))
KINDS = {
    "uw_madison": (
        uw_madison.UW_MADISON_PRESETS, uw_madison.make_uw_madison, UWMadison,
        {"patients": 5, "slices": 14, "frames": ((72, 60, 5.0),), "scans": 16, "short": 2,
         "short_slices": 9},
    ),
    "synapse": (
        synapse.SYNAPSE_PRESETS, synapse.make_synapse, Synapse,
        {**SMALL_SCANS, "frames": SMALL_FRAMES},
    ),
    "nnunet": (
        nnunet.NNUNET_PRESETS, nnunet.make_nnunet, NNUNet, {**SMALL_SCANS, "frames": SMALL_FRAMES},
    ),
    "acdc": (
        acdc.ACDC_PRESETS, acdc.make_acdc, ACDC,
        {**SMALL_SCANS, "frames": ((60, 54, 3.2, 20.0), (56, 58, 3.4, 20.0))},
    ),
    "isic2018": (
        isic2018.ISIC2018_PRESETS, isic2018.make_isic2018, ISIC2018,
        {"counts": (10, 3, 4), "frames": ((72, 56), (80, 60))},
    ),
}  # fmt: skip


def test_the_numbers_are_those_that_were_published():
    days = uw_madison._list_days(uw_madison.UW_MADISON_PRESETS["published"])
    assert (len(days), sum(slices for *_, slices in days)) == (274, 38496)
    assert len({patient for patient, *_ in days}) == 85
    assert {sum(p == patient for p, *_ in days) for patient in range(85)} <= {1, 2, 3, 4, 5}
    assert {slices for *_, slices in days} == {80, 144}
    assert isic2018.ISIC2018_PRESETS["published"].counts == (2594, 100, 1000)
    hearts = acdc.ACDC_PRESETS["published"]
    assert (hearts.train, hearts.test) == (100, 50)
    for presets in (synapse.SYNAPSE_PRESETS, nnunet.NNUNET_PRESETS):
        spec = presets["published"]
        shapes = [spec.shape_of(case) for case in range(spec.train + spec.test)]
        assert len(shapes) == 30
        assert sum(slices for slices, *_ in shapes[: spec.train]) == 2211
        assert sum(slices for slices, *_ in shapes) == 3779
        assert {shape[1:] for shape in shapes} == {(512, 512)}


@pytest.mark.parametrize("kind", KINDS)
def test_small_ones_are_read_by_the_reader_and_differ(tmp_path, monkeypatch, kind):
    presets, make, reader_class, numbers = KINDS[kind]
    monkeypatch.setitem(presets, "published", replace(presets["published"], **numbers))
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda pid: {0, 1})
    make(tmp_path / "root", "published")
    monkeypatch.setattr(parallel, "ITEMS_PER_PROCESS", 1000)
    make(tmp_path / "again", "published")
    assert digest(tmp_path / "root") == digest(tmp_path / "again")
    reader = reader_class(tmp_path / "root")
    refs = reader.cases()
    cases = prepare_cases(reader, refs, tmp_path / "store")
    assert len(cases) == {"uw_madison": 16, "isic2018": 17, "acdc": 14}.get(kind, 7)
    assert all(case.shape[0] in {1, *range(8, 15)} for case in cases)
    for number, name in enumerate(reader.classes):
        assert sum(case.voxels[number] > 0 for case in cases) > len(cases) / 2, name
    signatures = [case.signatures for case in cases]
    patients, pixels = [case.patient for case in cases], [case.pixels for case in cases]
    assert find_duplicates(signatures, patients, pixels) == []


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
