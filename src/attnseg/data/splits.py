"""Assignment of patients to training, validation and test: read from a file, given, or drawn.

A split is a table of patient, case, role and digest of the prepared voxels. Every run writes its
split, and `read_split` reads it again.
"""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from attnseg.data.reader import CaseRef
from attnseg.data.store import StoredCase
from attnseg.errors import ConfigError, DataError, Problems

ROLES = ("train", "val", "test")
SPLIT_COLUMNS = ("patient", "case", "role", "digest")
PUBLISHED = resources.files("attnseg.data.published")


def shuffle_names(names: Sequence[str], seed: int) -> list[str]:
    """Return names in the order of a hash of seed and name, so that adding one moves no other."""
    return sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def draw_roles(patients: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Draw a role for every patient; each role of `shares`, and training, gets at least one.

    Args:
        patients: names in any order; repeated names count once.
        shares: share of the patients by role other than `train`.
        seed: another seed draws another split.

    Raises:
        DataError: there are too few patients.
    """
    drawn = shuffle_names(patients, seed)
    counts = {role: max(1, round(share * len(drawn))) for role, share in shares.items()}
    if sum(shares.values()) < 1:  # Rounded up, the counts may leave no patient for training.
        while sum(counts.values()) >= len(drawn) and max(counts.values(), default=0) > 1:
            counts[max(counts, key=counts.__getitem__)] -= 1
    if sum(counts.values()) >= len(drawn):
        others = " and ".join(f"{role} ({share:g})" for role, share in shares.items())
        listing = f"train, {others}" if others else "train"
        raise DataError(
            f"dataset: {len(drawn)} patients cannot be split into {listing}; add patients, "
            "raise dataset.limit_cases or lower dataset.split"
        )
    roles = [role for role, count in counts.items() for _ in range(count)]
    roles += ["train"] * (len(drawn) - len(roles))
    return dict(zip(drawn, roles, strict=True))


def divide_into_folds(
    presence: Mapping[str, Sequence[bool]], count: int, seed: int
) -> list[list[str]]:
    """Divide patients into `count` folds in which every class is about equally frequent.

    Patients with the rarest class are distributed first. Each goes to the fold with the fewest
    patients of that class; among equals, to the fold with the fewest patients. `presence` holds
    the presence of each class, by patient.

    Raises:
        DataError: there are fewer patients than folds.
    """
    waiting = shuffle_names(list(presence), seed)
    if len(waiting) < count:
        raise DataError(
            f"dataset.split.folds: {len(waiting)} patients for {count} folds; "
            f"use at most {len(waiting)}"
        )
    folds: list[list[str]] = [[] for _ in range(count)]
    classes = range(max(len(present) for present in presence.values()))
    held = [[0] * len(classes) for _ in folds]  # patients of each class in each fold
    while waiting:
        left = {k: n for k in classes if (n := sum(presence[name][k] for name in waiting))}
        rarest = min(left, key=left.__getitem__, default=None)
        for name in [n for n in waiting if rarest is None or presence[n][rarest]]:
            loads = [
                (0 if rarest is None else counts[rarest], len(fold))
                for counts, fold in zip(held, folds, strict=True)
            ]
            at = loads.index(min(loads))
            folds[at].append(name)
            for k, present in enumerate(presence[name]):
                held[at][k] += bool(present)
        waiting = [n for n in waiting if rarest is not None and not presence[n][rarest]]
    return folds


def limit_cases(
    refs: Sequence[CaseRef], roles: Mapping[str, str | None], count: int | None, seed: int
) -> list[CaseRef]:
    """Keep `count` cases (`None` for all) of as many patients as possible, taking roles in turn.

    The kept cases stay in order. `roles` are by case, `None` where the role is still to be drawn.
    """
    order = {patient: i for i, patient in enumerate(shuffle_names([r.patient for r in refs], seed))}
    cases_of: dict[str, int] = {}
    cases_in: dict[tuple[int, str | None], int] = {}
    ranked = []
    for ref in sorted(refs, key=lambda r: order[r.patient]):
        # A patient's second case ranks after every patient's first.
        cases_of[ref.patient] = nth_of_patient = cases_of.get(ref.patient, 0) + 1
        key = (nth_of_patient, roles[ref.case])
        cases_in[key] = nth_of_role = cases_in.get(key, 0) + 1
        ranked.append((nth_of_patient, nth_of_role, order[ref.patient], ref.case))
    kept = {case for *_, case in sorted(ranked)[:count]}
    return [ref for ref in refs if ref.case in kept]


def find_split_file(name: str) -> Path | None:
    """Return the file of a path or of a published split's name; `None` if there is none."""
    paths = (Path(name), Path(str(PUBLISHED / f"{name}.csv")))
    return next((path for path in paths if path.is_file()), None)


def list_published_splits() -> list[str]:
    """Return the names of the published splits."""
    return sorted(p.name.removesuffix(".csv") for p in PUBLISHED.iterdir() if ".csv" in p.name)


def is_of_nnunet(path: str | Path | None) -> bool:
    """Return whether a split file is the `splits_final.json` of nnU-Net, by its ending.

    It holds training and validation cases of several folds, and no test cases.
    """
    return Path(path or "").suffix.lower() == ".json"


def read_split(path: Path, fold: int = 0) -> pd.DataFrame:
    """Read a split: `patient`, `role` and `digest` (empty if unknown) by case.

    The file is a CSV file, or nnU-Net's `splits_final.json`, of which one fold is read. That names
    no patients.

    Raises:
        ConfigError: the fold does not exist.
        DataError: the columns are not `SPLIT_COLUMNS`, a role is unknown, a case appears twice, or
            a patient has two roles; lists every problem.
    """
    if is_of_nnunet(path):
        rows = [(case, case, role, "") for case, role in _read_nnunet_fold(path, fold)]
        table = pd.DataFrame(rows, columns=list(SPLIT_COLUMNS), dtype=str)
    else:
        table = _read_split_table(path)
    problems = Problems()
    for case, role in zip(table["case"], table["role"], strict=True):
        if role not in ROLES:
            problems.found.append(f"{path}: {case}: role {role!r}; use {', '.join(ROLES)}")
    for case in table["case"][table["case"].duplicated()]:
        problems.found.append(f"{path}: {case} appears twice; list it once")
    for patient, roles in table.groupby("patient")["role"]:
        if roles.nunique() > 1:
            problems.found.append(
                f"{path}: patient {patient} in {' and '.join(sorted(set(roles)))}; "
                "give all cases of a patient one role"
            )
    problems.stop()
    return table.set_index("case")


def _read_split_table(path: Path) -> pd.DataFrame:
    """Return the rows of a CSV file; blank ones, which many programs write, are left out."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            header, *rows = [*csv.reader(lines)] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: not a split file ({error}); give a CSV file or nnU-Net's splits_final.json"
        ) from error
    if sorted(header) != sorted(SPLIT_COLUMNS):
        raise DataError(
            f"{path}: columns {','.join(header)[:80]!r}; expected {','.join(SPLIT_COLUMNS)}"
        )
    problems = Problems()
    filled = [(number, row) for number, row in enumerate(rows, 2) if "".join(row).strip()]
    for number, row in filled:
        if len(row) != len(SPLIT_COLUMNS):
            problems.found.append(f"{path}: line {number} has {len(row)} cells; correct it")
    problems.stop()
    return pd.DataFrame([row for _, row in filled], columns=header, dtype=str)


def _read_nnunet_fold(path: Path, fold: int) -> list[tuple[str, str]]:
    """Return case and role of each case in a fold of nnU-Net's `splits_final.json`."""
    try:
        folds = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error}); restore it") from error
    entries = folds if isinstance(folds, list) else []
    if not entries or not all(map(_is_fold, entries)):
        raise DataError(
            f'{path}: not written [{{"train": [<case>, ...], "val": [<case>, ...]}}, ...]; restore '
            "nnU-Net's splits_final.json"
        )
    if fold >= len(folds):
        raise ConfigError(
            f"dataset.split.fold: {fold}, but {path.name} has {len(folds)} folds; use 0 to "
            f"{len(folds) - 1}"
        )
    return [(case, role) for role in ("train", "val") for case in folds[fold][role]]


def _is_fold(entry: object) -> bool:
    lists = [entry.get(role) for role in ("train", "val")] if isinstance(entry, dict) else [None]
    return all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        for names in lists
    )


def check_digests(path: Path | str, split: pd.DataFrame, cases: Sequence[StoredCase]) -> None:
    """Refuse cases that have changed since a split was written; list all of them."""
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
    frame = pd.DataFrame(rows, columns=list(SPLIT_COLUMNS))
    return str(frame.to_csv(index=False, lineterminator="\n"))


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
    """Give every case a role: keep the roles that are given, and draw the others.

    With folds and a given test set, fold `fold` validates and the others train. With folds and
    without a test set, fold `fold` tests, the next one validates, and the others train. Over all
    folds, every patient is then tested once, by a model that was not selected on that patient.

    Args:
        groups: group by case; all cases of a group get the same role.
        given: role by case; `None` or `train` where a case may still be drawn for validation or
            test.
        presence: presence of each class, by case.
        val: share of the groups for validation.
        test: share of the groups for the test, if no test set is given.
        fold: index of the fold; `None` for no folds.
        count: number of folds.
        seed: seed of the drawing.
        validate: false to draw no validation set.

    Raises:
        DataError: there are too few groups.
    """
    given_roles = set(given.values())
    free = [case for case, role in given.items() if role in (None, "train")]
    names = [groups[case] for case in free]
    if fold is not None and "val" not in given_roles:
        members: dict[str, list[Sequence[bool]]] = {}
        for case, name in zip(free, names, strict=True):
            members.setdefault(name, []).append(presence[case])
        presence_in_group = {
            name: [any(k) for k in zip(*cases, strict=True)] for name, cases in members.items()
        }
        folds = divide_into_folds(presence_in_group, count, seed)
        drawn = _roles_by_fold(folds, fold, "test" in given_roles)
    else:
        shares = {} if "test" in given_roles else {"test": test}
        if validate and "val" not in given_roles:
            shares["val"] = val
        drawn = draw_roles(names, shares, seed)
    kept = {case: role for case, role in given.items() if role is not None}
    return kept | {case: drawn[groups[case]] for case in free}


def _roles_by_fold(folds: Sequence[Sequence[str]], fold: int, has_test_set: bool) -> dict[str, str]:
    """Return the role of each member of the folds (see `assign_roles`)."""
    role_of_fold = {fold: "val"}
    if not has_test_set:
        if len(folds) < 3:
            raise DataError("dataset.split.folds: 2 leave nobody to train; use 3 or more")
        role_of_fold = {fold: "test", (fold + 1) % len(folds): "val"}
    return {
        name: role_of_fold.get(index, "train")
        for index, members in enumerate(folds)
        for name in members
    }
