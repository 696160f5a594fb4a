"""One result of the examination, and how results are printed."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

WIDTH = 80  # columns
INDENT = 22  # columns before the text


@dataclass(frozen=True)
class Finding:
    """One result.

    Attributes:
        subject: a library, or a part of the machine.
        text: the present state.
        advice: what to do about it, if anything.
        level: `problem` where training fails or may fail, `note` for anything else worth knowing.
        exit_code: of `attnseg doctor`, if it is a problem.
    """

    subject: str
    text: str
    advice: str = ""
    level: Literal["ok", "note", "problem"] = "ok"
    exit_code: int = 0


def format_findings(findings: Sequence[Finding]) -> str:
    """Return the findings as a table of 80 columns, with the advice below each."""
    lines = []
    for finding in findings:
        start = f"{finding.level:8} {finding.subject:12} "
        lines += wrap_text(start, finding.text)
        if finding.advice:
            lines += wrap_text(" " * INDENT + "-> ", finding.advice)
    return "\n".join(lines)


def wrap_text(start: str, text: str) -> list[str]:
    """Return the lines of a text that follows `start`; paths and commands are never broken."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def findings_to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as a JSON list of objects with the attributes of `Finding`."""
    return json.dumps([asdict(finding) for finding in findings], indent=1)
