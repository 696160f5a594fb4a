import re
from dataclasses import dataclass

import pytest

from attnseg.data import guard
from attnseg.data.duplicates import DuplicatePair
from attnseg.errors import DataError


@dataclass
class Prepared:
    """What the guard looks at of a prepared case."""

    patient: str
    case: str
    pixels: str = ""
    shape: tuple[int, int, int] = (1, 4, 4)

    @property
    def files(self):
        return (f"/data/{self.case}.png",)

    def file(self, index):
        return self.files[0]


CASES = [Prepared(name, f"{name}0", f"pixels of {name}") for name in "abcd"]
ROLES = {"a0": "train", "b0": "train", "c0": "val", "d0": "test"}


def problems(cases=CASES, roles=ROLES, pairs=()):
    with pytest.raises(DataError) as error:
        guard.check_split(cases, roles, pairs)
    return error.value.problems


def test_a_clean_split_passes():
    guard.check_split(CASES, ROLES, [])


def test_a_patient_in_two_roles_is_refused_with_both_files():
    cases = [*CASES, Prepared("a", "a1")]
    (problem,) = problems(cases, {**ROLES, "a1": "test"})
    assert "patient a: in train (/data/a0.png) and test (/data/a1.png)" in problem
    guard.check_split(cases, {**ROLES, "a1": "train"}, [])


def test_every_pair_across_roles_is_named_with_both_files():
    pairs = [DuplicatePair(0, 3, (0, 0), 0.91), DuplicatePair(1, 2, (0, 0), 1.0)]
    near, other = problems(pairs=pairs)
    assert near.startswith("/data/a0.png and /data/d0.png: nearly the same picture")
    assert "similarity 0.91" in near
    assert "in train and test" in near
    assert "dataset.exclude" in near
    assert "/data/b0.png and /data/c0.png" in other


def test_equal_pixels_are_called_so_and_slices_of_scans_are_named():
    cases = [Prepared("a", "a0", "same"), Prepared("d", "d0", "same")]
    assert "the same pixels" in problems(cases, ROLES, [DuplicatePair(0, 1, (0, 0), 1.0)])[0]
    scans = [Prepared(name, f"{name}0", name, (9, 4, 4)) for name in "ad"]
    assert "slices 3 and 8" in problems(scans, ROLES, [DuplicatePair(0, 1, (2, 7), 0.95)])[0]


def test_a_pair_within_a_role_is_only_warned_of(caplog):
    import logging

    logging.getLogger("attnseg").propagate = True
    guard.check_split(CASES, ROLES, [DuplicatePair(0, 1, (0, 0), 0.99)])
    assert "/data/a0.png and /data/b0.png" in caplog.text


def test_groups_join_patients_over_several_pairs():
    cases = [Prepared(name, f"{name}{n}") for name in "abcdef" for n in range(2)]
    pairs = [DuplicatePair(0, 4, (0, 0), 1), DuplicatePair(5, 8, (0, 0), 1)]  # a with c, c with e
    groups = guard.group_patients(cases, pairs)
    assert {groups[f"{name}{n}"] for name in "ace" for n in range(2)} == {"a"}
    assert groups["b0"] == "b"
    assert guard.group_patients(CASES, []) == {case.case: case.patient for case in CASES}


def test_what_is_dropped_is_never_of_the_test_set():
    pairs = [
        DuplicatePair(0, 3, (0, 0), 1),
        DuplicatePair(2, 3, (0, 0), 1),
        DuplicatePair(0, 1, (0, 0), 1),
    ]
    assert guard.choose_left_out(CASES, ROLES, pairs) == {"a0", "c0"}


def test_moved_copies_are_called_so():
    (problem,) = problems(pairs=[DuplicatePair(0, 3, (0, 0), 0.97, moved=True)])
    assert "nearly the same picture, once centred, scaled and turned, (similarity 0.97)" in problem


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (["subject7-visit1", "subject7-visit2", "subject8-visit1"], "7 7 8"),
        (["GLI-00005-000", "GLI-00005-001", "GLI-00012-000"], "05 05 12"),
        (["s1_t1_2", "s1_t2_3", "s30_t1_1"], "s1 s1 s30"),
        (["A01 left1", "A01 right1", "A02 left1"], "A01 A01 A02"),
        (["scan_001", "scan_002", "scan_003"], None),
        (["BraTS20_Training_001", "BraTS20_Training_002"], None),
        (["p1", "p2"], None),
        (["a_1_2"], None),
        (["c1_left", "c2_left"], None),
    ],
)
def test_names_of_visits_suggest_a_pattern(names, patients):
    suggested = guard.suggest_patient_pattern(reversed(names))
    if patients is None:
        assert suggested is None
        return
    pattern, alike = suggested
    groups = [re.fullmatch(pattern, name)[1] for name in names]
    assert all(g.endswith(p) for g, p in zip(groups, patients.split(), strict=True))
    assert alike == names[:2]
    assert re.compile(pattern).groups == 1
