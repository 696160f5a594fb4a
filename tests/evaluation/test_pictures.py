"""Slices that a run keeps: the same for every variant, masks without loss, little of everything."""

import json

import numpy as np
import pytest
from PIL import Image

from attnseg.data.labels import Labels
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.store import prepare_cases
from attnseg.evaluation.pictures import LONGEST, Pictures
from attnseg.prediction.overlay import slices_to_show


@pytest.fixture(scope="module")
def reader(phantom):
    return UWMadison(str(phantom))


@pytest.fixture(scope="module")
def case(reader, tmp_path_factory):
    return prepare_cases(reader, reader.cases()[:1], tmp_path_factory.mktemp("store"))[0]


def kept(folder, case, truth, prediction, labels):
    pictures = Pictures(folder, "test", labels)
    pictures.add(case, truth, prediction)
    pictures.close()
    return json.loads((folder / "index.json").read_text())


def test_masks_come_back_without_loss(tmp_path, reader, case):
    truth = reader.labels.split(case.mask)
    prediction = np.roll(truth, 3, axis=-1)
    index = kept(tmp_path, case, truth, prediction, reader.labels)
    (entry,) = index["cases"]
    assert (entry["case"], entry["patient"], entry["of"]) == (
        case.case,
        case.patient,
        case.shape[0],
    )
    assert index["classes"] == list(reader.classes)
    assert index["overlapping"]
    assert [s["slice"] - 1 for s in entry["slices"]] == slices_to_show(truth)
    assert max(case.shape[1:]) <= LONGEST  # so that masks keep their size
    for kept_slice in entry["slices"]:
        for what, masks in (("truth", truth), ("prediction", prediction)):
            with Image.open(tmp_path / f"{kept_slice['name']}-{what}.png") as image:
                bits = np.asarray(image)
            for k in range(len(reader.classes)):
                assert ((bits >> k) & 1 == masks[k, kept_slice["slice"] - 1]).all()
        with Image.open(tmp_path / f"{kept_slice['name']}-image.jpg") as image:
            assert image.size == bits.shape[::-1]
    assert len(list(tmp_path.iterdir())) == 1 + 3 * len(entry["slices"])


def test_slices_do_not_depend_on_the_prediction(tmp_path, reader, case):
    truth = reader.labels.split(case.mask)
    one = kept(tmp_path / "a", case, truth, truth, reader.labels)
    other = kept(tmp_path / "b", case, truth, np.zeros_like(truth), reader.labels)
    assert one == other
    name = one["cases"][0]["slices"][0]["name"]
    for kept_same in ("image.jpg", "truth.png"):
        files = [(tmp_path / run / f"{name}-{kept_same}").read_bytes() for run in "ab"]
        assert files[0] == files[1]


def test_exclusive_classes_become_indices(tmp_path, case):
    labels = np.zeros(case.shape, np.uint8)
    labels[:, 2:9, 3:7] = 1
    labels[:, 9:12, 3:7] = 2
    truth = np.stack([labels == 1, labels == 2])
    index = kept(tmp_path, case, truth, ~truth[::-1] & truth, Labels(("a", "b")))
    name = index["cases"][0]["slices"][0]["name"]
    with Image.open(tmp_path / f"{name}-truth.png") as image:
        assert (np.asarray(image) == labels[0]).all()


def test_large_and_flat_voxels_become_small_square_pixels(tmp_path, case, monkeypatch):
    monkeypatch.setattr("attnseg.evaluation.pictures.LONGEST", 20)
    monkeypatch.setattr("attnseg.evaluation.pictures.pixel_aspect", lambda case: 0.5)
    truth = np.zeros((1, *case.shape), bool)  # a case without any class has pictures, too
    index = kept(tmp_path, case, truth, truth, Labels(("a",), overlapping=True))
    name = index["cases"][0]["slices"][0]["name"]
    with Image.open(tmp_path / f"{name}-image.jpg") as image:
        width, height = image.size
    assert max(width, height) == 20
    assert height / width == pytest.approx(0.5 * case.shape[1] / case.shape[2], rel=0.1)
