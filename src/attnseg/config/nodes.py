"""Building blocks of every command's options: nodes, components, and types of single values."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

MAX_SEED = 2**32 - 1  # NumPy takes no larger one


def _as_pair(value: object) -> object:
    return (value, value) if isinstance(value, int) else _as_tuple(value)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value or []


Fraction = Annotated[float, Field(gt=0, lt=1)]
Folder = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
ImageSize = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_as_pair)]
Names = Annotated[list[str], BeforeValidator(_as_list)]  # one name stands for a list of one
AsTuple = BeforeValidator(_as_tuple)


def flatten_options(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted key and the value of each option in nested mappings."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from flatten_options(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


class Node(BaseModel):
    """A part of the configuration with fixed keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class CommandOptions(Node):
    """The options of a command.

    Attributes:
        choices: the name that was chosen in each configuration group.
    """

    choices: dict[str, str]


class Component(BaseModel):
    """A part of the configuration that names a class and holds the options it is built with."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, populate_by_name=True)

    target: str = Field(alias="_target_")

    @property
    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of the class."""
        return dict(self.model_extra or {})
