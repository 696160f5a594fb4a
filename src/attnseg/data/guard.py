"""Nobody is on two sides of a split: patients, copies and near copies are found before training."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from attnseg.data.duplicates import DuplicatePair
from attnseg.data.store import StoredCase
from attnseg.errors import Problems

log = logging.getLogger(__name__)

MAX_LOGGED_PAIRS = 5  # pairs within a role that are named in the log


def group_patients(cases: Sequence[StoredCase], pairs: Iterable[DuplicatePair]) -> dict[str, str]:
    """Return whose each case is: a patient, or the first of the patients that share a picture."""
    parent = {case.patient: case.patient for case in cases}

    def top(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for pair in pairs:
        first, second = sorted((top(cases[pair.first].patient), top(cases[pair.second].patient)))
        parent[second] = first
    return {case.case: top(case.patient) for case in cases}


def check_split(
    cases: Sequence[StoredCase], roles: Mapping[str, str], pairs: Sequence[DuplicatePair]
) -> None:
    """Refuse a split with a patient or a picture in two roles.

    Args:
        cases: all of the split.
        roles: by case.
        pairs: cases that share a picture, as indices into `cases`.

    Raises:
        DataError: names every patient, and both files of every pair.
    """
    problems = Problems()
    places: dict[str, dict[str, StoredCase]] = {}
    for case in cases:
        places.setdefault(case.patient, {})[roles[case.case]] = case
    for patient, found in places.items():
        if len(found) > 1:
            where = " and ".join(f"{role} ({case.files[0]})" for role, case in found.items())
            problems.found.append(
                f"patient {patient}: in {where}; give all cases of a patient one role"
            )
    within = []
    for pair in pairs:
        sides = {roles[cases[pair.first].case], roles[cases[pair.second].case]}
        if len(sides) > 1:
            problems.found.append(
                f"{describe_pair(cases, pair, roles)}; list one in dataset.exclude, or set "
                "dataset.split.duplicates=group (one side for both) or drop (train without them)"
            )
        else:
            within.append(pair)
    for pair in within[:MAX_LOGGED_PAIRS]:
        log.warning("%s", describe_pair(cases, pair, roles))
    if len(within) > MAX_LOGGED_PAIRS:
        log.warning(
            "%d more pairs of the same picture within a role", len(within) - MAX_LOGGED_PAIRS
        )
    problems.stop()


def choose_left_out(
    cases: Sequence[StoredCase], roles: Mapping[str, str], pairs: Sequence[DuplicatePair]
) -> set[str]:
    """Return the cases to leave out so that no picture is in two roles.

    Training gives way to validation, and both to the test.
    """
    order = ("train", "val", "test")
    left_out: set[str] = set()
    for pair in pairs:
        both = sorted(
            (cases[i].case for i in (pair.first, pair.second)), key=lambda c: order.index(roles[c])
        )
        if roles[both[0]] != roles[both[1]]:
            left_out.add(both[0])
    return left_out


def describe_pair(
    cases: Sequence[StoredCase], pair: DuplicatePair, roles: Mapping[str, str]
) -> str:
    """Return one line that names both files of a pair."""
    first, second = cases[pair.first], cases[pair.second]
    files = first.file(pair.slices[0]), second.file(pair.slices[1])
    what = "the same pixels"
    if first.pixels != second.pixels:
        what = f"nearly the same picture (similarity {pair.similarity:.2f}"
        if first.shape[0] + second.shape[0] > 2:
            what += f", slices {pair.slices[0] + 1} and {pair.slices[1] + 1}"
        what += ")"
    where = f"{roles[first.case]} and {roles[second.case]}"
    return f"{files[0]} and {files[1]}: {what} in {where}"
