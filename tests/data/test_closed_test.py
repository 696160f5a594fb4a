import json
import logging

import numpy as np
import pytest

from attnseg.data.closed_test import ClosedTest, record_scored_masks
from attnseg.data.labels import digest_masks
from attnseg.errors import ResourceError
from tests.data.test_guard import Prepared


def prepared(*names):
    cases = [Prepared(name[0], name) for name in names]
    for case in cases:
        case.digest = f"digest of {case.case}"
    return cases


def test_every_opening_is_on_record_before_anything_is_seen(tmp_path):
    data = tmp_path / "data"
    closed = ClosedTest(prepared("a0", "a1", "b0"), tmp_path / "outputs" / "openings.jsonl", data)
    assert closed.counts == {"patients": 2, "cases": 3, "slices": 3}
    assert (len(closed), closed.count_openings(), closed.openings.exists()) == (3, 0, False)
    assert [case.case for case in closed.open("run 1", "scored")] == ["a0", "a1", "b0"]
    closed.open("run 2", "scored")
    lines = [json.loads(line) for line in closed.openings.read_text().splitlines()]
    assert [line["run"] for line in lines] == ["run 1", "run 2"]
    assert closed.count_openings() == 2


def test_another_test_set_has_a_count_of_its_own_and_order_does_not_matter(tmp_path):
    openings = tmp_path / "openings.jsonl"
    ClosedTest(prepared("a0", "b0"), openings, tmp_path).open("run", "scored")
    assert ClosedTest(prepared("b0", "a0"), openings, tmp_path).count_openings() == 1
    assert ClosedTest(prepared("a0", "c0"), openings, tmp_path).count_openings() == 0


def test_other_outputs_do_not_restart_the_count_and_neither_ledger_is_enough_to_hide_one(tmp_path):
    data = tmp_path / "data"
    for folder in ("one", "two"):
        closed = ClosedTest(prepared("a0"), tmp_path / folder / "openings.jsonl", data)
        closed.open(f"{folder}/run", "scored")
        closed.open(f"{folder}/run", "scored")  # the same line within a second counts, too
    assert closed.count_openings() == 4
    closed.ledger.write_text("")
    assert closed.count_openings() == 2
    closed.open("two/run", "scored")
    closed.openings.unlink()
    closed.ledger.write_text(closed.ledger.read_text() + '{"time": "cut o')
    assert closed.count_openings() == 1


def test_masks_scored_without_a_run_are_an_opening(tmp_path):
    masks = np.zeros((2, 3, 8, 8), bool)
    masks[0, 1, 2:6, 2:6] = True
    masks[1, 0, 0, :3] = True  # too small to tell by
    (case,) = cases = prepared("a0")
    case.mask_digests = digest_masks(masks)
    closed = ClosedTest(cases, tmp_path / "openings.jsonl", tmp_path)
    closed.register_masks()
    small, shifted = digest_masks(masks[1:]), digest_masks([np.roll(masks[0], 1, 1)])
    assert record_scored_masks(tmp_path, [*small, *shifted], "pred", "evaluate") == 0
    assert record_scored_masks(tmp_path, digest_masks(masks[:1]), "pred", "evaluate") == 1
    assert closed.count_openings() == 1


def test_a_ledger_that_cannot_be_written_is_warned_of(tmp_path, caplog):
    logging.getLogger("attnseg").propagate = True
    (tmp_path / "data").touch()
    closed = ClosedTest(prepared("a0"), tmp_path / "openings.jsonl", tmp_path / "data")
    closed.open("run", "scored")
    assert closed.count_openings() == 1
    assert "on record elsewhere only" in caplog.text


def test_without_a_ledger_it_stays_closed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="stays closed"):
        ClosedTest(prepared("a0"), tmp_path / "file" / "openings.jsonl", tmp_path / "file").open(
            "run", "scored"
        )
