"""Files of a folder by the names of their cases, and the patients that a pattern finds in these."""

import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attnseg.errors import Problems, join_names

log = logging.getLogger(__name__)


def list_by_name(folder: Path, endings: Sequence[str], problems: Problems) -> dict[str, Path]:
    """Return a folder's files by their names without the ending, sorted by the files' names.

    Endings may be spelt in capitals. Hidden files, such as those that macOS adds, files of other
    kinds and folders are passed over; a line of the log counts and names them. Two files of one
    name are a problem.
    """
    files: dict[str, Path] = {}
    passed_over: list[str] = []
    for path in sorted(folder.iterdir()):
        ending = find_ending(path.name, endings)
        if path.name.startswith(".") or not ending or path.is_dir():
            if not (".hdr" in endings and find_companion(path, ".img", ".hdr")):
                passed_over.append(path.name)
            continue
        # The same letters can be stored in two ways: macOS and Linux differ.
        name = unicodedata.normalize("NFC", path.name[: len(path.name) - len(ending)])
        if name in files:
            problems.found.append(f"{path}: {files[name].name} is of the same case; keep one file")
        files[name] = path
    if passed_over:
        log.info("%s: %d passed over: %s", folder, len(passed_over), join_names(passed_over))
    return files


def find_ending(name: str, endings: Iterable[str]) -> str:
    """Return the longest of the endings that a file's name has in any spelling, or else none."""
    lower = name.lower()
    return max((each for each in endings if lower.endswith(each)), key=len, default="")


def find_companion(path: Path, end: str, other: str) -> Path | None:
    """Return the file whose ending is `other` where that of `path` is `end`, or `None`.

    Either ending may be followed by `.gz`.
    """
    match = re.fullmatch(rf"(.*)({re.escape(end)})(\.gz)?", path.name, re.IGNORECASE | re.DOTALL)
    if match is None:
        return None
    ending = other.upper() if match[2].isupper() else other
    names = (f"{match[1]}{ending}{packed}" for packed in (match[3] or "", "", ".gz"))
    return next((file for name in names if (file := path.with_name(name)).is_file()), None)


def compile_patient_pattern(pattern: str) -> re.Pattern[str]:
    """Return a regular expression whose group is the patient in a name.

    Raises:
        ValueError: it is invalid, or does not have exactly one group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient {pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(
            f"patient {pattern!r} has {compiled.groups} groups; put one pair of brackets around "
            "the patient's part"
        )
    return compiled


def warn_of_groups(pattern: str, patients: Mapping[str, str]) -> None:
    """Warn where a pattern groups nothing, or puts all cases into one group.

    Args:
        pattern: as given.
        patients: patient by case.
    """
    groups = set(patients.values())
    if len(patients) > 1 and len(groups) == 1:
        log.warning(
            "patient: %r makes all %d cases those of one patient, %r; check the pattern",
            pattern, len(patients), *groups,
        )  # fmt: skip
    elif len(patients) > 1 and len(groups) == len(patients):
        log.warning(
            "patient: %r gives each of the %d cases a patient of its own, as no pattern would; "
            "check it if patients have several",
            pattern, len(patients),
        )  # fmt: skip
