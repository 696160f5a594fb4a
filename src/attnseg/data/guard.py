"""Protection against leaks: no patient and no picture may have two roles in a split."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from attnseg.data.duplicates import DuplicatePair
from attnseg.data.store import StoredCase
from attnseg.errors import Problems

log = logging.getLogger(__name__)

MAX_LOGGED_PAIRS = 5  # duplicates within a role that are named in the log
# Names with a patient's number and a counter: the part before the last number, and up to the first.
VISITS = (r"(.*\d.*?)([_\-. ]+[A-Za-z]*)\d+", r"(\D*\d+)[_\-. ].*\d.*")


def group_patients(cases: Sequence[StoredCase], pairs: Iterable[DuplicatePair]) -> dict[str, str]:
    """Return the group of each case: patients who share a picture belong to one group.

    A group is named after the first of its patients in alphabetical order.
    """
    parent = {case.patient: case.patient for case in cases}

    def root_of(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]  # which keeps the way to the root short
            name = parent[name]
        return name

    for pair in pairs:
        roots = sorted(root_of(cases[index].patient) for index in (pair.first, pair.second))
        parent[roots[1]] = roots[0]
    return {case.case: root_of(case.patient) for case in cases}


def suggest_patient_pattern(names: Iterable[str]) -> tuple[str, list[str]] | None:
    """Return a pattern if names look like those of several visits of the same patients.

    They do if a part with a number is followed by a counter, and some but not all of them share it.

    Returns:
        A regular expression whose group is the patient, and names that share a patient; or `None`.
    """
    known = sorted(names)
    for pattern in VISITS:
        matches = {name: match for name in known if (match := re.fullmatch(pattern, name))}
        visits = Counter(match[1] for match in matches.values())
        if len(visits) > 1 and len(matches) == len(known) and (most := max(visits.values())) > 1:
            example = min(prefix for prefix, count in visits.items() if count == most)
            endings = {match[match.re.groups] for match in matches.values()}
            if len(endings) == 1:
                pattern = f"(.+){re.escape(endings.pop())}\\d+"
            pattern = pattern.replace("([_", "(?:[_")  # The patient is the only group.
            return pattern, [name for name, match in matches.items() if match[1] == example]
    return None


def check_split(
    cases: Sequence[StoredCase], roles: Mapping[str, str], pairs: Sequence[DuplicatePair]
) -> None:
    """Refuse a split in which a patient or a picture has two roles; list all of them.

    `roles` are by case, and `pairs` hold indices into `cases`.
    """
    problems = Problems()
    cases_of_patient: dict[str, dict[str, StoredCase]] = {}
    for case in cases:
        cases_of_patient.setdefault(case.patient, {})[roles[case.case]] = case
    for patient, case_by_role in cases_of_patient.items():
        if len(case_by_role) > 1:
            where = " and ".join(f"{role} ({case.files[0]})" for role, case in case_by_role.items())
            problems.found.append(
                f"patient {patient}: in {where}; give all cases of a patient one role"
            )
    within = []
    for pair in pairs:
        if roles[cases[pair.first].case] != roles[cases[pair.second].case]:
            problems.found.append(
                f"{describe_pair(cases, pair, roles)}; list one in dataset.exclude, or set "
                "dataset.split.duplicates=group (one side for both) or drop (train without them)"
            )
        else:
            within.append(pair)
    for pair in within[:MAX_LOGGED_PAIRS]:
        log.warning("%s", describe_pair(cases, pair, roles))
    if (more := len(within) - MAX_LOGGED_PAIRS) > 0:
        log.warning("%d more pairs of the same picture within a role", more)
    problems.stop()


def choose_left_out(
    cases: Sequence[StoredCase], roles: Mapping[str, str], pairs: Sequence[DuplicatePair]
) -> set[str]:
    """Return the cases to leave out so that no picture has two roles.

    A training case gives way to a validation case, and either to a test case.
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
    relation = "the same pixels"
    if first.pixels != second.pixels:
        moved = ", once centred, scaled and turned," if pair.moved else ""
        relation = f"nearly the same picture{moved} (similarity {pair.similarity:.2f}"
        if first.shape[0] + second.shape[0] > 2:
            relation += f", slices {pair.slices[0] + 1} and {pair.slices[1] + 1}"
        relation += ")"
    where = f"{roles[first.case]} and {roles[second.case]}"
    return f"{files[0]} and {files[1]}: {relation} in {where}"
