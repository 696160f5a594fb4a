"""Checks options with pydantic, and states the first mistake in one line with key and remedy."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from attnseg.errors import ConfigError

Schema = TypeVar("Schema", bound=BaseModel)


class OptionError(ValueError):
    """A value that a node's own check refuses, or values that do not fit each other.

    Args:
        key: relative to the node; empty for the node itself.
        message: `what is wrong; what to do`.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key, self.message = key, message


def parse_options(schema: type[Schema], raw: Mapping[str, Any], prefix: str = "") -> Schema:
    """Turn plain containers, whose key in the whole configuration is `prefix`, into typed options.

    A `ConfigError` names the first key that is wrong, what is wrong and what is allowed.
    """
    for key, value in _leaves(raw, prefix):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}: {value} is not a finite number; give one")
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(first_problem(error, schema, raw, prefix)) from error


def first_problem(
    error: ValidationError,
    schema: type[BaseModel],
    raw: Mapping[str, Any],
    prefix: str = "",
    also: Iterable[str] = (),
) -> str:
    """Return one line for the first problem that pydantic found.

    Args:
        error: raised by pydantic.
        schema: class that `raw` was checked against.
        raw: the mapping that was checked.
        prefix: key of `raw` in the whole configuration.
        also: names that are allowed beside those of the schema.
    """
    # An unknown key explains a missing one better than the other way round.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"] if not _is_branch(part, first["loc"], raw)]
    cause = first.get("ctx", {}).get("error")
    own_key = cause.key if isinstance(cause, OptionError) else ""
    key = ".".join(part for part in (prefix, *path, own_key) if part)
    if isinstance(cause, OptionError):
        return f"{key}: {cause.message}"
    if first["type"] == "extra_forbidden":
        return f"{key}: no such option; {nearest(path[-1], {*_siblings(schema, path), *also})}"
    if first["type"] == "missing":
        return f"{key}: missing; choose or set it"
    message = first["msg"]
    return f"{key}: {first['input']!r} is not allowed; {message[0].lower()}{message[1:]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return advice for a name that is not among `known`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    advice = f"did you mean {close[0]}? " if close else ""
    return f"{advice}choose one of {', '.join(known)}" if known else "remove it"


def _leaves(node: object, key: str) -> Iterator[tuple[str, object]]:
    """Yield the full key and the value of every option below a node."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{key}[{i}]")
    else:
        yield key, node


def _is_branch(part: object, loc: tuple[Any, ...], raw: Mapping[str, Any]) -> bool:
    """Return whether a part of pydantic's location names a branch of a union, not a key."""
    node: Any = raw
    for name in loc:
        if isinstance(node, Mapping) and name in node:
            node = node[name]
        elif name is part:
            return not isinstance(node, Mapping) and not isinstance(part, int)
    return False


def _siblings(schema: type[BaseModel], path: list[str]) -> list[str]:
    """Return the names that are allowed beside the last key of a path."""
    node: Any = schema
    for part in path[:-1]:
        field = node.model_fields.get(part)
        node = getattr(field, "annotation", None)
        if not (isinstance(node, type) and issubclass(node, BaseModel)):
            return []
    return [field.alias or name for name, field in node.model_fields.items()]
