"""Values of options that take text, such as paths, as they are typed.

Hydra's grammar gives a meaning to brackets, commas and numbers, and refuses `=`, `#` and letters
beyond ASCII. Where an option takes text, nothing but the text can be meant.
"""

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

PATHS = {
    "root", "data", "outputs", "file", "pretrained", "groups", "run", "runs", "study", "input",
    "output", "pred", "truth", "capsule", "predictions",
}  # fmt: skip
PATTERNS = {"patient"}
TWO_OPTIONS = re.compile(r"\s[\w.+~/@]+=")


def quote_text_options(arguments: list[str]) -> list[str]:
    """Return arguments whose values Hydra takes as they are typed, if their options take text."""
    sweeps = bool({"-m", "--multirun"} & set(arguments))
    return [_quote_argument(argument, sweeps) for argument in arguments]


def _quote_argument(argument: str, sweeps: bool) -> str:
    """Quote the value of `KEY=VALUE` if Hydra would read something else than the text."""
    key, _, value = argument.partition("=")
    name = key.rpartition(".")[2]
    if name not in PATHS | PATTERNS or value[:1] in ("", "'", '"') or value == "null":
        return argument
    if name in PATHS and value.startswith("~/"):  # Shells expand it at the start of a word only.
        value = str(Path(value).expanduser())
    exists = name in PATHS and Path(value).exists()
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        if value[0] == "[" and value[-1] == "]" and not exists:  # a list of such texts
            elements = value[1:-1].split(",")
            return f"{key}=[{','.join(quote_text(e.strip()) for e in elements)}]"
        return f"{key}={quote_text(value)}"
    parsed: Any = None if override.is_sweep_override() else override.value()
    if isinstance(parsed, str) and parsed == value and not (exists and "${" in value):
        return f"{key}={value}"
    plain = isinstance(parsed, int | float) or (override.is_sweep_override() and not sweeps)
    spaces = isinstance(parsed, str) and parsed == value.strip()
    return f"{key}={quote_text(value)}" if exists or plain or spaces else argument


def quote_text(text: str) -> str:
    """Return text in Hydra's quotes; a `${` in it stays what it is where a path holds it."""
    if Path(text).exists():
        text = text.replace("${", r"\${")
    return "'" + re.sub(r"(\\*)('|\Z)", _escape_quote, text) + "'"


def _escape_quote(match: re.Match[str]) -> str:
    """Double the backslashes before a quote or the end, and escape the quote."""
    return match[1] * 2 + (r"\'" if match[2] else "")


def suggest_quotes(argument: str) -> str:
    """Return how an argument must be typed so that its value is text; empty if that is no help."""
    key, equals, value = argument.partition("=")
    if not equals or not re.fullmatch(r"[\w.@/]+", key) or TWO_OPTIONS.search(value):
        return ""
    return shlex.quote(f'{key}="{value}"') if '"' not in value and value[-1:] != "\\" else ""
