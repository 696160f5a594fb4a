"""The test set behind a seal: every opening leaves a line in a file that nothing removes."""

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from attnseg.data.store import StoredCase
from attnseg.errors import ResourceError


def count_cases(cases: Sequence[StoredCase]) -> dict[str, int]:
    """Return numbers of patients, cases and slices."""
    patients, slices = len({c.patient for c in cases}), sum(c.shape[0] for c in cases)
    return {"patients": patients, "cases": len(cases), "slices": slices}


class SealedTest:
    """Test cases that can be counted, but only be had by opening the seal.

    Args:
        cases: the test set.
        openings: file that gets one JSON line per opening.
    """

    def __init__(self, cases: Sequence[StoredCase], openings: Path) -> None:
        self._cases = list(cases)
        self.openings = openings
        self.digest = hashlib.sha256("".join(sorted(c.digest for c in cases)).encode()).hexdigest()

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self._cases)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of patients, cases and slices."""
        return count_cases(self._cases)

    def open(self, run: str, purpose: str) -> list[StoredCase]:
        """Return the cases, once the opening is on record.

        Args:
            run: who opens it.
            purpose: what for.

        Raises:
            ResourceError: the file of openings cannot be written.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "test_set": self.digest,
            "run": run,
            "purpose": purpose,
        }
        try:
            self.openings.parent.mkdir(parents=True, exist_ok=True)
            with self.openings.open("ab", buffering=0) as file:  # one write: jobs may run at once
                file.write((json.dumps(line) + "\n").encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise ResourceError(
                f"{self.openings}: cannot be written ({error.strerror}); the test set stays sealed"
            ) from error
        return list(self._cases)

    def count_openings(self) -> int:
        """Return how often these very cases have been opened, by any run."""
        if not self.openings.is_file():
            return 0
        return self.openings.read_text().count(f'"test_set": "{self.digest}"')
