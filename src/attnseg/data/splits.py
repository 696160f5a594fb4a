"""Which patients train, validate and test: drawn once by patient, and written to a file."""

import hashlib
import io
from collections.abc import Sequence

import pandas as pd

from attnseg.data.reader import CaseRef
from attnseg.data.store import StoredCase
from attnseg.errors import DataError

ROLES = ("train", "val", "test")


def draw(patients: Sequence[str], val: float, test: float, seed: int) -> dict[str, str]:
    """Give every patient a role.

    Args:
        patients: names, in any order; repeats count once.
        val: share of the patients that validate; at least one does.
        test: share of the patients that test; at least one does.
        seed: another seed draws another split.

    Returns:
        `train`, `val` or `test` by patient.

    Raises:
        DataError: fewer than three patients, or none left to train.
    """
    drawn = shuffled(patients, seed)
    counts = {"test": max(1, round(test * len(drawn))), "val": max(1, round(val * len(drawn)))}
    if sum(counts.values()) >= len(drawn):
        raise DataError(
            f"dataset: {len(drawn)} patients cannot be split into train, val ({val:g}) and test "
            f"({test:g}); add patients, raise dataset.limit_cases or lower dataset.split"
        )
    roles = ["test"] * counts["test"] + ["val"] * counts["val"]
    roles += ["train"] * (len(drawn) - len(roles))
    return dict(zip(drawn, roles, strict=True))


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """Order names by a hash of seed and name, so that adding one moves no other."""
    return sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def limit(refs: Sequence[CaseRef], count: int | None, seed: int) -> list[CaseRef]:
    """Keep `count` cases of as many patients as possible, in their order; `None` keeps all."""
    order = {patient: i for i, patient in enumerate(shuffled([r.patient for r in refs], seed))}
    seen: dict[str, int] = {}
    ranked = []
    for ref in refs:
        seen[ref.patient] = seen.get(ref.patient, 0) + 1
        ranked.append((seen[ref.patient], order[ref.patient], ref.case))
    kept = {case for _, _, case in sorted(ranked)[:count]}
    return [ref for ref in refs if ref.case in kept]


def table(cases: Sequence[StoredCase], roles: dict[str, str]) -> str:
    """Return the split as CSV: patient, case, role and digest of the prepared voxels."""
    rows = [(c.patient, c.case, roles[c.patient], c.digest) for c in cases]
    out = io.StringIO()
    frame = pd.DataFrame(rows, columns=["patient", "case", "role", "digest"])
    frame.to_csv(out, index=False, lineterminator="\n")
    return out.getvalue()
