"""The identity of a run, and the differences that make runs incomparable, by the fields' markers.

A run's identity is the set of its options that differ from their defaults: of the field in
`training.py`, or of the class that a component names. So an option that is added at its default
changes no identity. A default that is *changed* would let two different runs share one: a test
holds the defaults of this version, and `VERSION` must rise with any of them.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from attnseg.config.build import locate
from attnseg.config.markers import Marker
from attnseg.config.nodes import Component
from attnseg.config.training import Config
from attnseg.files import file_digest
from attnseg.models.pretrained import find_weights
from attnseg.plugins import find_used_plugins

VERSION = 2  # of the defaults; part of every identity


def run_id(config: Config, data_digest: str, split_digest: str) -> str:
    """Return ten hexadecimal digits of a run's configuration, data and split."""
    described = identity_of(config)
    # Two processes with two slices each train as one with four.
    described["dataset"]["batch_size"] *= config.trainer.devices
    if config.model.pretrained is not None:
        described["model"]["pretrained"] = file_digest(find_weights(config.model.pretrained))
    if config.conversion is not None:
        described["conversion"]["parent"] = file_digest(find_weights(config.conversion.parent))
    return short_digest([described, data_digest, split_digest])


def short_digest(described: object, version: int = VERSION) -> str:
    """Return ten hexadecimal digits of plain containers and the version of the defaults."""
    text = json.dumps([version, described], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def identity_of(node: BaseModel, key: str = "") -> dict[str, Any]:
    """Return the options that make a run the run that it is, as plain containers.

    The node is a configuration, or the part of one that has this key.
    """
    described: dict[str, Any] = {}
    for name, field in type(node).model_fields.items():
        value = getattr(node, name)
        if _marker(field).identity and value != field.get_default(call_default_factory=True):
            described[field.alias or name] = _plain(value, f"{key}.{name}".strip("."))
    if isinstance(node, Component):
        defaults = class_defaults(locate(key, node.target))
        for name, value in (node.model_extra or {}).items():
            if name not in defaults or _as_list(value) != _as_list(defaults[name]):
                described[name] = _plain(value, f"{key}.{name}")
        # Another version of a plugin's code makes another run; components within note their own.
        named = {"_target_": node.target, **(node.model_extra or {})}
        flat = {name: value for name, value in named.items() if isinstance(value, str)}
        if used := find_used_plugins(flat):
            described["plugins"] = {name: plugin.digest for name, plugin in used.items()}
    return described


def class_defaults(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a class's or function's parameters."""
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def affects_comparison(key: str) -> bool:
    """Return whether runs that differ in an option must not be compared without saying so.

    The key is dotted, such as `trainer.devices`; options that only a class knows always matter.
    """
    markers = _markers_along(key)
    return all(marker is None or marker.comparison for marker in markers)


def affects_rounding(key: str) -> bool:
    """Return whether an option that makes no other run may change the last digits of its results.

    The key is dotted, as for `affects_comparison`.
    """
    return any(marker is not None and marker.rounding for marker in _markers_along(key))


def _markers_along(key: str) -> Iterator[Marker | None]:
    """Yield the marker of each part of a dotted key; `None` and no more for an unknown one."""
    node: Any = Config
    for part in key.split("."):
        is_node = isinstance(node, type) and issubclass(node, BaseModel)
        field = node.model_fields.get(part) if is_node else None
        yield None if field is None else _marker(field)
        if field is None:
            return
        node = next(iter(get_args(field.annotation)), field.annotation)  # of `Part | None`, Part


def _marker(field: FieldInfo) -> Marker:
    return next((item for item in field.metadata if isinstance(item, Marker)), Marker())


def _plain(value: Any, key: str) -> Any:  # noqa: ANN401
    if isinstance(value, BaseModel):
        return identity_of(value, key)
    if isinstance(value, Mapping) and "_target_" in value:
        return identity_of(Component.model_validate(value), key)
    if isinstance(value, Mapping):
        return {name: _plain(item, f"{key}.{name}") for name, item in value.items()}
    return value


def _as_list(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
