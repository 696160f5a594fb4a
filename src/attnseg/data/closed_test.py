"""The closed test set: its cases can be read only after the access has been recorded.

Every opening is a line of JSON in two ledgers: one beside the prepared data, which all runs on
these data share wherever they write, and one beside the runs. No line is ever removed, and an
opening counts if either ledger has it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnseg.errors import ResourceError
from attnseg.files import sync, write_text

if TYPE_CHECKING:  # Reading the ledgers needs no image library.
    from attnseg.data.store import StoredCase

log = logging.getLogger(__name__)

LEDGERS = "test_openings"  # folder beside the prepared data: a ledger per test set
OPENINGS = "test_openings.jsonl"  # ledger beside the runs on a dataset


def count_cases(cases: Sequence[StoredCase]) -> dict[str, int]:
    """Return the numbers of patients, cases and slices."""
    patients, slices = len({c.patient for c in cases}), sum(c.shape[0] for c in cases)
    return {"patients": patients, "cases": len(cases), "slices": slices}


def digest_cases(digests: Iterable[str]) -> str:
    """Return the digest of cases from those of each, in this order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def digest_test_set(digests: Iterable[str]) -> str:
    """Return the digest of a test set from those of its cases, in any order."""
    return digest_cases(sorted(digests))


class ClosedTest:
    """Holds the test cases, which anybody may count but only `open` returns.

    Args:
        cases: the test cases.
        openings: the ledger beside the runs, shared by all test sets of a dataset.
        data: folder of `paths.data`, in which the test set has a ledger of its own.
    """

    def __init__(self, cases: Sequence[StoredCase], openings: Path, data: Path) -> None:
        self._cases = list(cases)
        self.digest = digest_test_set(case.digest for case in cases)
        self.openings = openings
        self.ledger = data / LEDGERS / f"{self.digest}.jsonl"

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self._cases)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of patients, cases and slices."""
        return count_cases(self._cases)

    def open(self, run: str, purpose: str) -> list[StoredCase]:
        """Record that a run opens the test set, and why; then return the cases.

        Raises:
            ResourceError: the opening cannot be recorded.
        """
        record_opening(self.digest, (self.ledger, self.openings), run, purpose)
        return list(self._cases)

    def count_openings(self) -> int:
        """Return how often any run has opened a test set of exactly these cases."""
        return len(read_openings(self.digest, (self.ledger, self.openings)))

    def register_masks(self) -> None:
        """Note the digests of the true masks, so that `record_scored_masks` knows them."""
        digests = sorted({digest for case in self._cases for digest in case.mask_digests})
        try:
            self.ledger.parent.mkdir(parents=True, exist_ok=True)
            if not (path := self.ledger.with_suffix(".masks")).exists():
                write_text(path, "\n".join(digests) + "\n")
        except OSError as error:
            log.warning("%s: cannot be written (%s)", self.ledger.parent, error.strerror)


def record_opening(digest: str, ledgers: Sequence[Path], run: str, purpose: str) -> None:
    """Add the same line to each ledger that can be written; warn of the others.

    Raises:
        ResourceError: no ledger can be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"time": now, "test_set": digest, "run": run, "purpose": purpose}) + "\n"
    failures = []
    for path in ledgers:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                file.write(line.encode())  # A single write keeps simultaneous lines apart.
                sync(file.fileno())
        except OSError as error:
            failures.append(f"{path}: cannot be written ({error.strerror})")
    if len(failures) == len(ledgers):
        raise ResourceError(f"{failures[-1]}; the test set stays closed")
    for failure in failures:
        log.warning("%s; this opening of the test set is on record elsewhere only", failure)


def read_openings(digest: str, ledgers: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the openings of a test set that any ledger has, the earliest first."""
    lines: Counter[str] = Counter()
    for path in dict.fromkeys(path.resolve() for path in ledgers):
        if path.is_file():
            lines |= Counter(path.read_text(errors="replace").splitlines())
    openings = []
    for line in lines.elements():
        try:
            opening = json.loads(line)
        except ValueError:  # A line that was cut off by a full disk.
            continue
        if isinstance(opening, dict) and opening.get("test_set") == digest:
            openings.append(opening)
    return sorted(openings, key=lambda opening: str(opening.get("time")))


def record_scored_masks(data: Path, digests: Iterable[str], run: str, purpose: str) -> int:
    """Record an opening of each test set below `data` that has one of these true masks.

    `digests` are of `labels.digest_masks`.

    Returns:
        The number of masks that belong to a test set.
    """
    scored = set(digests)
    shared = set[str]()
    for path in sorted((data / LEDGERS).glob("*.masks")):
        if own := scored & set(path.read_text().split()):
            record_opening(path.stem, (path.with_suffix(".jsonl"),), run, purpose)
            shared |= own
    return len(shared)
