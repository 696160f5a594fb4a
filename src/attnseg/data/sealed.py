"""The sealed test set: its cases can be read only after the access has been recorded."""

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from attnseg.data.store import StoredCase
from attnseg.errors import ResourceError


def count_cases(cases: Sequence[StoredCase]) -> dict[str, int]:
    """Return the numbers of patients, cases and slices."""
    patients, slices = len({c.patient for c in cases}), sum(c.shape[0] for c in cases)
    return {"patients": patients, "cases": len(cases), "slices": slices}


class SealedTest:
    """Holds the test cases, which anybody may count but only `open` returns.

    Every opening appends a line of JSON to the log file `openings`. No line is ever removed.
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
        """Record that a run opens the test set, and why; then return the cases.

        Raises:
            ResourceError: the opening cannot be recorded.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "test_set": self.digest,
            "run": run,
            "purpose": purpose,
        }
        try:
            self.openings.parent.mkdir(parents=True, exist_ok=True)
            with self.openings.open("ab", buffering=0) as file:
                # A single unbuffered write keeps lines of simultaneous jobs apart.
                file.write((json.dumps(line) + "\n").encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise ResourceError(
                f"{self.openings}: cannot be written ({error.strerror}); the test set stays sealed"
            ) from error
        return list(self._cases)

    def count_openings(self) -> int:
        """Return how often any run has opened a test set of exactly these cases."""
        if not self.openings.is_file():
            return 0
        # The text is searched as `json.dumps` writes it.
        return self.openings.read_text().count(f'"test_set": "{self.digest}"')
