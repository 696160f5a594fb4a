"""The values that the type of an option allows, where it names them."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def literal_values(options: Any, key: str) -> list[str]:  # noqa: ANN401
    """Return the texts and numbers that the type of a dotted key allows; none if it allows more."""
    for name in key.split("."):
        is_node = isinstance(options, type) and issubclass(options, BaseModel)
        field = options.model_fields.get(name) if is_node else None
        if field is None:
            return []
        options = field.annotation
    return [str(value) for value in flatten_literals(options)]


def flatten_literals(annotation: Any) -> list[object]:  # noqa: ANN401
    """Return the values of an annotation made of literals; `None` and other types add nothing."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(arguments)
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [value for each in arguments for value in flatten_literals(each)]
    return []
