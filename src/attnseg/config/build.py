"""Builds the objects that a configuration names; no other module does.

A `_target_` is a class of this package, of a plugin, or one of a few others, which are named here:
a configuration cannot make the program run code of its author's choice.
"""

import importlib
import inspect
import re
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from attnseg.config.errors import first_problem
from attnseg.config.nodes import Component
from attnseg.errors import ConfigError, first_line
from attnseg.plugins import Plugin, find_plugin, list_plugins

ROOMS = (
    "attention", "data", "layers", "losses", "metrics", "models", "phantoms", "schedules",
    "training.loggers",
)  # fmt: skip
OWN = re.compile(rf"attnseg\.({'|'.join(map(re.escape, ROOMS))})(\.\w+)+")
MOVED = {  # places in run folders of version 0.1.0, and the present ones; applied in this order
    "attnseg.data.phantoms.": "attnseg.phantoms.",
    "attnseg.engine.loggers.": "attnseg.training.loggers.",
    "attnseg.training.loggers.TensorBoard": "attnseg.training.loggers.tensorboard.TensorBoard",
    "attnseg.training.loggers.WandB": "attnseg.training.loggers.wandb.WandB",
    "attnseg.training.loggers.MLflow": "attnseg.training.loggers.mlflow.MLflow",
    "attnseg.engine.schedules.": "attnseg.schedules.schedule.",
}
OTHERS = frozenset({"torch.optim.AdamW", "torch.optim.SGD"})
# Arguments that a model passes to an attention.
ATTENTION = ("dim", "num_heads", "bias", "scale", "projection", "place")


def locate(key: str, target: str) -> Callable[..., Any]:
    """Return the class or function that `target` names; refuse with a `ConfigError` all others."""
    for old, new in MOVED.items():
        if target.startswith(old):
            target = new + target.removeprefix(old)
    module, _, name = target.rpartition(".")
    plugin = find_plugin(module)
    if not OWN.fullmatch(target) and target not in OTHERS and plugin is None:
        raise ConfigError(
            f"{key}._target_: {target!r} is not allowed; name a class of attnseg."
            f"{', '.join(ROOMS)}, one of {', '.join(sorted(OTHERS))}, or of an installed plugin "
            f"({', '.join(list_plugins()) or 'there is none'})"
        )
    try:
        located = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_: {target!r} does not exist; {error}") from error
    except Exception as error:
        if plugin is None:
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"{key}: plugin {plugin} cannot be imported; {reason}") from error
    # A name that a module of ours merely imports, such as `os`, must not be reachable through it.
    if not callable(located) or (target not in OTHERS and located.__module__ != module):
        raise ConfigError(f"{key}._target_: {target!r} is not defined there; name where it is")
    if plugin is not None and not _is_offered(plugin, target, located):
        raise ConfigError(
            f"{key}._target_: {target!r} is no class derived from one of attnseg or torch; derive "
            f"it, or name it in a file of {plugin.configs}"
        )
    return typing.cast("Callable[..., Any]", located)


def _is_offered(plugin: Plugin, target: str, located: Callable[..., Any]) -> bool:
    """Return whether a plugin means its class or function to be chosen, and not to be its own."""
    bases = located.__mro__[1:] if isinstance(located, type) else ()
    derived = any(base.__module__.startswith(("attnseg.", "torch.")) for base in bases)
    return derived or plugin.lists(target)


def factory(key: str, node: Component, given: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Return the class that `node` names with its options checked and filled in.

    Args:
        key: the node's place in the configuration, for messages.
        node: class and options.
        given: names of the arguments that the caller of the factory passes.
    """
    target = locate(key, node.target)
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default)
        for name, p in inspect.signature(target).parameters.items()
        if name not in given and p.kind is not p.VAR_KEYWORD
    }
    rules = ConfigDict(
        extra="forbid",
        strict=True,
        arbitrary_types_allowed=True,
        # Pydantic reserves names such as `model_...`; these fields are only checked, never read.
        protected_namespaces=(),
    )
    schema = create_model(f"{node.target} options", __config__=rules, **fields)
    options = {
        name: _option(f"{key}.{name}", value, hints.get(name))
        for name, value in node.options.items()
    }
    try:
        schema.model_validate(options)
    except ValidationError as error:
        also = type(node).model_fields.keys() - {"target"}
        raise ConfigError(first_problem(error, schema, options, key, also)) from error
    return partial(target, **options)


def build(key: str, node: Component, **context: object) -> Any:  # noqa: ANN401
    """Build the object that `node` describes, given the arguments that depend on its `context`.

    A `ConfigError` that begins with `key` names an option that is unknown, of another type, or
    refused by the class.
    """
    try:
        return factory(key, node, tuple(context))(**context)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


def _option(key: str, value: Any, hint: object) -> object:  # noqa: ANN401
    """Return an option as its class takes it.

    A component within a component is an attention or a token reduction, which its model builds
    itself: it becomes a factory. Components by name are built. YAML has no tuples: a list becomes
    one, unless the type hint asks for a list.
    """
    if isinstance(value, dict) and "_target_" in value:
        component = Component.model_validate(value)
        example = getattr(locate(key, component.target), "EXAMPLE", None)
        build(key, component, **(example or {"dim": 8, "num_heads": 1}))
        return factory(key, component, tuple(example or ATTENTION))
    if _are_components(value):
        return {n: build(f"{key}.{n}", Component.model_validate(v)) for n, v in value.items()}
    return tuple(value) if isinstance(value, list) and "list" not in str(hint) else value


def _are_components(value: object) -> bool:
    """Return whether a value is a mapping of names to components."""
    nodes = value.values() if isinstance(value, dict) else ()
    return bool(nodes) and all(isinstance(node, dict) and "_target_" in node for node in nodes)
