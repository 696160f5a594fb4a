"""Faults that a reader must refuse, each with one line that names the file and what to do."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attnseg.errors import DataError


def unmet(text: str, message: str, start: object) -> list[str]:
    """What an error's text lacks; empty if it is as it should be."""
    held = {
        f"{message!r} in the text": message in text,
        f"{str(start)!r} at its start": text.startswith(str(start)),
        "one line": "\n" not in text,
        "what to do": "; " in text,
    }
    return [f"not {name}: {text}" for name, holds in held.items() if not holds]


def check(text: str, message: str, start: object) -> None:
    lacks = unmet(text, message, start)
    assert not lacks, "\n".join(lacks)


def check_all(
    faults: Mapping[str, tuple[Any, ...]],
    attempt: Callable[..., object],
    folder: Path,
    start: Callable[[Path], object] = lambda folder: folder,
) -> None:
    """Attempt every fault, and name all that are not refused as they should be.

    Args:
        faults: arguments of `attempt`, and last the message that is expected, by name.
        attempt: called with a new folder and the arguments; must raise a `DataError`.
        folder: an empty folder for all of them.
        start: start of the error's text, by folder.
    """
    violations = []
    for index, (name, (*arguments, message)) in enumerate(faults.items()):
        own = folder / str(index)
        own.mkdir()
        try:
            attempt(own, *arguments)
        except DataError as error:
            violations += [f"{name}: {lack}" for lack in unmet(str(error), message, start(own))]
        except Exception as error:
            error.add_note(f"fault: {name}")
            raise
        else:
            violations.append(f"{name}: accepted")
    assert not violations, "\n".join(violations)
