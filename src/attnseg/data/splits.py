"""Who trains, validates and tests: by patient, from a file, from the dataset, or drawn.

A split is a table of patient, case, role and digest of the prepared voxels. Every run writes its
own, and `read_split` takes it back.
"""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from attnseg.data.reader import CaseRef
from attnseg.data.store import StoredCase
from attnseg.errors import DataError, Problems

ROLES = ("train", "val", "test")
SPLIT_COLUMNS = ("patient", "case", "role", "digest")
PUBLISHED = resources.files("attnseg.data.published")


def shuffle_names(names: Sequence[str], seed: int) -> list[str]:
    """Order names by a hash of seed and name, so that adding one moves no other."""
    return sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def draw_roles(patients: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Give every patient a role.

    Args:
        patients: names, in any order; repeats count once.
        shares: share of the patients by role other than `train`; each gets at least one.
        seed: another seed draws another split.

    Returns:
        Role by patient.

    Raises:
        DataError: too few patients, none left to train.
    """
    drawn = shuffle_names(patients, seed)
    counts = {role: max(1, round(share * len(drawn))) for role, share in shares.items()}
    if sum(shares.values()) < 1:  # rounded up, they may leave nobody to train
        while sum(counts.values()) >= len(drawn) and max(counts.values(), default=0) > 1:
            counts[max(counts, key=counts.__getitem__)] -= 1
    if sum(counts.values()) >= len(drawn):
        others = " and ".join(f"{role} ({share:g})" for role, share in shares.items())
        wanted = f"train, {others}" if others else "train"
        raise DataError(
            f"dataset: {len(drawn)} patients cannot be split into {wanted}; add patients, "
            "raise dataset.limit_cases or lower dataset.split"
        )
    roles = [role for role, count in counts.items() for _ in range(count)]
    roles += ["train"] * (len(drawn) - len(roles))
    return dict(zip(drawn, roles, strict=True))


def divide_into_folds(
    presence: Mapping[str, Sequence[bool]], count: int, seed: int
) -> list[list[str]]:
    """Divide patients into folds in which every class is about equally frequent.

    The rarest class is dealt out first, each patient to the fold with the fewest of that class,
    then the fewest patients.

    Args:
        presence: of each class, by patient.
        count: number of folds.
        seed: another seed gives other folds.

    Returns:
        Patients by fold.

    Raises:
        DataError: fewer patients than folds.
    """
    waiting = shuffle_names(list(presence), seed)
    if len(waiting) < count:
        raise DataError(
            f"dataset.split.folds: {len(waiting)} patients for {count} folds; "
            f"use at most {len(waiting)}"
        )
    dealt: list[list[str]] = [[] for _ in range(count)]
    classes = range(max(len(found) for found in presence.values()))
    while waiting:
        left = {k: n for k in classes if (n := sum(presence[name][k] for name in waiting))}
        rarest = min(left, key=lambda k: left[k]) if left else None
        for name in [n for n in waiting if rarest is None or presence[n][rarest]]:

            def load(fold: list[str], rarest: int | None = rarest) -> tuple[int, int]:
                same = 0 if rarest is None else sum(presence[n][rarest] for n in fold)
                return same, len(fold)

            min(dealt, key=load).append(name)
            waiting.remove(name)
    return dealt


def limit_cases(
    refs: Sequence[CaseRef], roles: Mapping[str, str | None], count: int | None, seed: int
) -> list[CaseRef]:
    """Keep `count` cases of as many patients as possible, every role in turn.

    Args:
        refs: all cases; the order is kept.
        roles: role by case, `None` where it is still to be drawn.
        count: how many to keep; `None` for all.
        seed: of the order in which patients are taken.
    """
    order = {patient: i for i, patient in enumerate(shuffle_names([r.patient for r in refs], seed))}
    days: dict[str, int] = {}
    turns: dict[tuple[int, str | None], int] = {}
    ranked = []
    for ref in sorted(refs, key=lambda r: order[r.patient]):
        days[ref.patient] = day = days.get(ref.patient, 0) + 1
        role = roles[ref.case]
        turns[day, role] = turn = turns.get((day, role), 0) + 1
        ranked.append((day, turn, order[ref.patient], ref.case))
    kept = {case for *_, case in sorted(ranked)[:count]}
    return [ref for ref in refs if ref.case in kept]


def find_split_file(name: str) -> Path | None:
    """Return the file that `name` means: a path, or a published split; `None` if there is none."""
    for path in (Path(name), Path(str(PUBLISHED / f"{name}.csv"))):
        if path.is_file():
            return path
    return None


def list_published_splits() -> list[str]:
    """Return the names of the published splits."""
    return sorted(p.name.removesuffix(".csv") for p in PUBLISHED.iterdir() if ".csv" in p.name)


def read_split(path: Path) -> pd.DataFrame:
    """Read a split.

    Returns:
        A row per case, indexed by case: `patient`, `role` and `digest` (empty if unknown).

    Raises:
        DataError: not a table of `SPLIT_COLUMNS`, a role that does not exist, a case twice, or
            a patient in two roles; names every problem.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            header, *rows = [*csv.reader(lines)] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a split file ({error}); give a CSV file") from error
    if sorted(header) != sorted(SPLIT_COLUMNS):
        raise DataError(
            f"{path}: columns {','.join(header)[:80]!r}; expected {','.join(SPLIT_COLUMNS)}"
        )
    problems = Problems()
    for number, row in enumerate(rows, 2):
        if len(row) != len(SPLIT_COLUMNS):
            problems.found.append(f"{path}: line {number} has {len(row)} cells; correct it")
    problems.stop()
    table = pd.DataFrame(rows, columns=header, dtype=str)
    for case, role in zip(table["case"], table["role"], strict=True):
        if role not in ROLES:
            problems.found.append(f"{path}: {case}: role {role!r}; use {', '.join(ROLES)}")
    for case in table["case"][table["case"].duplicated()]:
        problems.found.append(f"{path}: {case} appears twice; keep one row")
    for patient, roles in table.groupby("patient")["role"]:
        if roles.nunique() > 1:
            problems.found.append(
                f"{path}: patient {patient} in {' and '.join(sorted(set(roles)))}; "
                "give all cases of a patient one role"
            )
    problems.stop()
    return table.set_index("case")


def check_digests(path: Path | str, split: pd.DataFrame, cases: Sequence[StoredCase]) -> None:
    """Check that cases are what they were when a split was written.

    Raises:
        DataError: names every case that has changed.
    """
    problems = Problems()
    for case in cases:
        if split.loc[case.case, "digest"] not in ("", case.digest):
            problems.found.append(
                f"{path}: {case.case} has changed since the split was written; restore its files "
                "or clear its digest"
            )
    problems.stop()


def format_split(cases: Sequence[StoredCase], roles: Mapping[str, str]) -> str:
    """Return a split as CSV text; `roles` are by case."""
    rows = [(c.patient, c.case, roles[c.case], c.digest) for c in cases]
    out = io.StringIO()
    frame = pd.DataFrame(rows, columns=list(SPLIT_COLUMNS))
    frame.to_csv(out, index=False, lineterminator="\n")
    return out.getvalue()


def assign_roles(
    groups: Mapping[str, str],
    given: Mapping[str, str | None],
    presence: Mapping[str, Sequence[bool]],
    *,
    val: float,
    test: float,
    fold: int | None,
    count: int,
    seed: int,
    validate: bool = True,
) -> dict[str, str]:
    """Give every case a role; what the dataset or a file says is kept, the rest is drawn.

    With folds, and a test set that is given, fold `fold` validates and the others train. Without
    one, `fold` tests, the next one validates, and the others train: over all folds every patient is
    tested once, by a model that was not chosen on them.

    Args:
        groups: whose each case is; a group never crosses roles.
        given: role by case, `None` or `train` where validation and test may be drawn from.
        presence: of each class, by case.
        val: share of the groups that validate.
        test: share of the groups that test, if no test set is given.
        fold: number of the fold, from 0; `None` for no folds.
        count: number of folds.
        seed: of what is drawn.
        validate: false to draw no validation set.

    Raises:
        DataError: too few groups.
    """
    has = set(given.values())
    free = [case for case, role in given.items() if role in (None, "train")]
    names = [groups[case] for case in free]
    drawn: dict[str, str]
    if fold is not None and "val" not in has:
        found = {
            name: [
                any(k) for k in zip(*(presence[c] for c in free if groups[c] == name), strict=True)
            ]
            for name in names
        }
        dealt = divide_into_folds(found, count, seed)
        if "test" not in has and count < 3:
            raise DataError("dataset.split.folds: 2 leave nobody to train; use 3 or more")
        special = {fold: "val"} if "test" in has else {fold: "test", (fold + 1) % count: "val"}
        drawn = {name: special.get(i, "train") for i, part in enumerate(dealt) for name in part}
    else:
        shares = {} if "test" in has else {"test": test}
        if validate and "val" not in has:
            shares["val"] = val
        drawn = draw_roles(names, shares, seed)
    kept = {case: role for case, role in given.items() if role is not None}
    return kept | {case: drawn[groups[case]] for case in free}
