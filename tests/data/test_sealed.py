import json

import pytest

from attnseg.data.sealed import SealedTest
from attnseg.errors import ResourceError
from tests.data.test_guard import Prepared


def prepared(*names):
    cases = [Prepared(name[0], name) for name in names]
    for case in cases:
        case.digest = f"digest of {case.case}"
    return cases


def test_every_opening_is_on_record_before_anything_is_seen(tmp_path):
    sealed = SealedTest(prepared("a0", "a1", "b0"), tmp_path / "outputs" / "openings.jsonl")
    assert sealed.counts == {"patients": 2, "cases": 3, "slices": 3}
    assert (len(sealed), sealed.count_openings(), sealed.openings.exists()) == (3, 0, False)
    assert [case.case for case in sealed.open("run 1", "scored")] == ["a0", "a1", "b0"]
    sealed.open("run 2", "scored")
    lines = [json.loads(line) for line in sealed.openings.read_text().splitlines()]
    assert [line["run"] for line in lines] == ["run 1", "run 2"]
    assert sealed.count_openings() == 2


def test_another_test_set_has_a_count_of_its_own_and_order_does_not_matter(tmp_path):
    openings = tmp_path / "openings.jsonl"
    SealedTest(prepared("a0", "b0"), openings).open("run", "scored")
    assert SealedTest(prepared("b0", "a0"), openings).count_openings() == 1
    assert SealedTest(prepared("a0", "c0"), openings).count_openings() == 0


def test_without_a_ledger_the_seal_holds(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="stays sealed"):
        SealedTest(prepared("a0"), tmp_path / "file" / "openings.jsonl").open("run", "scored")
