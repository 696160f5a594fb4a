import numpy as np
import pytest

from attnseg.data.readers.uw_madison import UWMadison
from attnseg.errors import DataError
from attnseg.phantoms.phantom import make_once
from attnseg.phantoms.uw_madison import UW_MADISON_PRESETS, make_mr_scan, make_uw_madison
from tests.limits import at_most


def test_demo_is_made_in_20_seconds_and_is_like_the_download(tmp_path):
    with at_most(seconds=20):
        make_uw_madison(tmp_path / "demo", "demo")
    reader = UWMadison(tmp_path / "demo")
    refs = reader.cases()
    days = {ref.patient: 0 for ref in refs}
    for ref in refs:
        days[ref.patient] += 1
    assert len(days) == UW_MADISON_PRESETS["demo"].patients
    assert set(days.values()) == {1, 2, 3}
    shapes = set()
    for ref in refs:
        case = reader.read(ref)
        shapes.add(case.image.shape[1:3])
        present = (case.mask[..., None] >> np.arange(3)) & 1
        assert present.any((0, 1, 2)).all(), f"{ref.case} lacks an organ"
        assert (present.sum(-1) > 1).any(), f"{ref.case} has no overlap"
        assert not case.mask[0].any()
        assert not case.mask[-1].any()
        assert case.image.max() > 500
    assert len(shapes) >= 2
    assert all(height != width for height, width in shapes)


def test_patients_differ_more_than_days():
    """Large bowel and stomach stay where they are from day to day."""

    def masks(patient, day):
        return make_mr_scan(0, patient, day, (20, 60, 72), 5.0)[1][[0, 2]]

    def agreement(a, b):
        return 2 * (a & b).sum() / (a.sum() + b.sum())

    days = np.mean([agreement(masks(p, 0), masks(p, 1)) for p in range(4)])
    patients = np.mean([agreement(masks(p, 0), masks(p + 1, 0)) for p in range(4)])
    assert days > patients + 0.05


def test_it_is_made_once_and_never_over_something_else(phantom, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in phantom.rglob("*")}
    make_uw_madison(phantom, "tiny")
    assert before == {path: path.stat().st_mtime_ns for path in phantom.rglob("*")}
    with pytest.raises(DataError, match="something else"):
        make_uw_madison(phantom, "tiny", seed=3)
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="something else"):
        make_uw_madison(tmp_path / "mine", "tiny")


def test_an_interrupted_phantom_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("attnseg.phantoms.uw_madison.make_mr_scan", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_uw_madison(tmp_path / "new", "tiny")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_make_the_same_phantom_share_it(tmp_path):
    root = tmp_path / "uw"

    def write(part):
        make_once(root, {"seed": 0}, lambda other: (other / "by").write_text("the other"))
        (part / "by").write_text("this one")

    make_once(root, {"seed": 0}, write)
    assert (root / "by").read_text() == "the other"
    assert [path.name for path in tmp_path.iterdir()] == ["uw"]
    with pytest.raises(DataError, match="something else"):
        make_once(root, {"seed": 1}, write)
