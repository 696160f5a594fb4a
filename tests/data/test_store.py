import os

import numpy as np
import pytest

from attnseg.data import store
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.slicing import scale_intensities
from attnseg.errors import DataError
from tests.data.uw_tree import Tree


@pytest.fixture
def reads(monkeypatch):
    """Names of the cases that were decoded."""
    names = []
    original = UWMadison.read
    monkeypatch.setattr(
        UWMadison, "read", lambda self, ref: names.append(ref.case) or original(self, ref)
    )
    return names


def prepare(root, folder):
    reader = UWMadison(root)
    return reader, store.prepare_cases(reader, reader.cases(), folder)


def test_what_is_stored_is_what_was_read(phantom, tmp_path):
    reader, cases = prepare(phantom, tmp_path)
    for ref, stored in zip(reader.cases(), cases, strict=True):
        case = reader.read(ref)
        assert stored.case == ref.case
        assert stored.patient == ref.patient
        assert np.array_equal(stored.image, case.image)
        assert np.array_equal(stored.mask, case.mask)
        assert isinstance(stored.image, np.memmap)
        for index in (0, len(case.image) - 1):
            assert np.array_equal(stored.mask_slice(index), case.mask[index])
            whole = scale_intensities(case.image, stored.low, stored.high)
            assert np.array_equal(stored.scaled(index), whole[index])
            assert np.array_equal(stored.scaled(np.array([index, 1, 0])), whole[[index, 1, 0]])
        assert stored.spacing == case.spacing
        assert stored.voxels == tuple(int(((case.mask >> k) & 1).sum()) for k in range(3))
        assert stored.low < stored.high <= (case.image.max(),)


def test_it_is_prepared_once(phantom, tmp_path, reads):
    _, first = prepare(phantom, tmp_path)
    decoded = list(reads)
    _, second = prepare(phantom, tmp_path)
    assert len(decoded) == len(first)
    assert reads == decoded
    assert second == first


def test_a_changed_file_or_row_is_prepared_again(tmp_path, reads):
    tree = Tree(tmp_path / "root", ("case1_day0", "case2_day0"))
    _, before = prepare(tree.write(), tmp_path / "store")
    reads.clear()
    tree.rows["case2_day0_slice_0001", "stomach"] = "1 4"
    tree.write()
    for path in (tmp_path / "root").rglob("*.png"):  # only the table is new
        os.utime(path, ns=(0, 0))
    _, _ = prepare(tree.root, tmp_path / "store")
    reads.clear()
    tree.rows["case2_day0_slice_0001", "stomach"] = "1 5"
    text = (tmp_path / "root" / "train.csv").read_text()
    (tmp_path / "root" / "train.csv").write_text(text.replace(",1 4\n", ",1 5\n"))
    _, after = prepare(tree.root, tmp_path / "store")
    assert reads == ["case2_day0"]
    assert after[1].voxels == (0, 0, 5)
    assert before[1].digest != after[1].digest
    assert before[0].digest == after[0].digest


def test_a_broken_case_leaves_the_good_ones_and_no_rubbish(tmp_path):
    tree = Tree(tmp_path / "root", ("case1_day0", "case2_day0", "case3_day0"))
    tree.rows["case1_day0_slice_0001", "stomach"] = "1"
    tree.rows["case3_day0_slice_0001", "stomach"] = "1"
    tree.write()
    with pytest.raises(DataError, match=r"case1_day0_slice_0001.*1 more problems"):
        prepare(tree.root, tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["case-case2_day0"]


def test_a_constant_image_can_be_scaled(tmp_path):
    tree = Tree(tmp_path / "root")
    tree.files = {name: np.full((4, 5), 7, np.uint16) for name in tree.files}
    _, (case,) = prepare(tree.write(), tmp_path / "store")
    assert (case.low, case.high) == ((7,), (8,))
