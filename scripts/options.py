"""The options of commands, trainings and choices, with type, default and meaning.

Types and meanings come from the classes that options are checked against, their docstrings, and the
comments in `configs/`; defaults come from `configs/`.
"""

import inspect
import json
import re
import types
import typing
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from attnseg.attention.attention import ALL_TOKENS, load_part
from attnseg.attention.gather import Gather
from attnseg.attention.mixing import Mixing
from attnseg.config.build import ATTENTION, locate
from attnseg.config.folder import configs_folder
from attnseg.config.nodes import Component
from attnseg.config.training import Dataset, Model, Optimizer, Trainer

# Classes that a group's options are checked against, beside the class that a choice names.
SCHEMAS: dict[str, type[BaseModel]] = {
    "dataset": Dataset,
    "model": Model,
    "optimizer": Optimizer,
    "trainer": Trainer,
}
ABOUT = {
    "attn": "The attention of every block. [Each has a page](../attentions/README.md).",
    "augment": "Random changes of the training slices.",
    "dataset": "The images, and their division. [More on data](../data.md).",
    "experiment": "Options of several groups that belong together.",
    "logger": "Trackers that show curves while a run trains. [More on tracking](../tracking.md).",
    "loss": "The quantity that training minimises.",
    "model": "The network around the attention. [More on training](../training.md).",
    "optimizer": "The rule that changes the weights.",
    "profile": "The convention of all scores. [More on metrics](../metrics.md).",
    "scheduler": "The learning rate over the steps, as a share of `optimizer.lr`.",
    "search": "Spaces of `attnseg search`. [More on searching](../search.md).",
    "sweep": "Whole studies. [More on studies](../studies.md).",
    "tokens": "Fewer tokens from block to block. [More on training](../training.md).",
    "trainer": "The length of a training, and the machine that it runs on.",
    "workload": "Workloads of `attnseg benchmark suite=step`. [More](../benchmarks.md).",
}


@dataclass(frozen=True)
class Option:
    """A row of a table.

    Attributes:
        key: as it is typed.
        kind: the values that it takes.
        default: as it is typed; empty if the option must be given.
        meaning: a phrase.
    """

    key: str
    kind: str
    default: str
    meaning: str

    def as_row(self) -> str:
        """Return the row in Markdown."""
        default = f"`{self.default}`" if self.default else "*must be given*"
        cells = (f"`{self.key}`", self.kind, default, self.meaning)
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


@dataclass
class Choice:
    """A YAML file in `configs/`, with the files that it is based on.

    Attributes:
        comment: the lines at its top.
        section: the key of its content; empty for the whole configuration.
        base: the file that it is based on first.
        text: what is below the comment.
        values: by dotted key.
        notes: comments beside the values, by dotted key.
        groups: choices that it makes in other groups.
    """

    comment: list[str] = field(default_factory=list)
    section: str = ""
    base: str = ""
    text: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)


def choice_options(group: str, name: str) -> list[Option]:
    """Return the options of a choice; those that its file does not list begin with `+`."""
    choice = read_choice(group, name)
    section = choice.section or group
    options = []
    for key, value in choice.values.items():
        of_part = group == "attn" and key.endswith("_options")
        if of_part:
            options += list(_part_options(key, choice))
        if key.rpartition(".")[2] != "_target_" and not (of_part and value):
            kind, meaning = _explain(group, key, choice)
            kind, meaning = _combine(kind, meaning, choice.notes.get(key, ""))
            options.append(Option(f"{section}.{key}", kind, as_typed(value), meaning))
    for key, other in choice.groups.items():
        place = f"attn@{section}.{key.partition('@')[2]}"
        options.append(Option(place, "choice of [attn](attn.md)", other, choice.notes[key]))
    target = choice.values.get("_target_", "")
    if target.startswith("attnseg."):
        listed = {key.split(".")[0] for key in (*choice.values, *_places(choice))}
        listed |= {*ATTENTION} if group == "attn" else {"tokens", "overlapping", "version"}
        for own, parameter in inspect.signature(locate(group, target)).parameters.items():
            if own not in listed and parameter.default is not parameter.empty:
                kind, meaning = class_arguments(locate(group, target))[own]
                default = as_typed(parameter.default)
                options.append(Option(f"+{section}.{own}", kind, default, meaning))
    return options


def _places(choice: Choice) -> list[str]:
    return [key.partition("@")[2] for key in choice.groups]


def _explain(group: str, key: str, choice: Choice) -> tuple[str, str]:
    """Return type and meaning of a choice's option, from a schema or the class that takes it."""
    schema = SCHEMAS.get(choice.section or group)
    if schema is not None and (entry := _schema_entry(schema, key.split("."))):
        return entry
    owner, _, own = key.rpartition(".")
    target = choice.values.get(f"{owner}._target_" if owner else "_target_")
    return class_arguments(locate(group, target)).get(own, ("", "")) if target else ("", "")


def _part_options(key: str, choice: Choice) -> Iterator[Option]:
    """Yield the options of an attention's mixing or gather."""
    kind = key.removesuffix("_options")
    base = Mixing if kind == "mixing" else Gather
    given, name = choice.values[key], choice.values[kind]
    if name == ALL_TOKENS:
        return
    part = load_part(kind, name, base, given)
    arguments = class_arguments(part)
    for own, parameter in list(inspect.signature(part).parameters.items())[
        len(inspect.signature(base).parameters) :
    ]:
        text, meaning = arguments[own]
        default = as_typed(given.get(own, parameter.default))
        yield Option(f"{'' if own in given else '+'}attn.{key}.{own}", text, default, meaning)


def schema_options(schema: type[BaseModel], prefix: str, choice: Choice) -> Iterator[Option]:
    """Yield the options of a class that a configuration is checked against."""
    meanings = _attributes(schema)
    for name, info in schema.model_fields.items():
        alias = info.alias or name
        key = f"{prefix}{name if alias.startswith('_') else alias}"
        node = _node_class(info)
        if key == "choices":
            continue
        if node is not None and issubclass(node, Component):
            yield group_option(name, choice)
            continue
        default = choice.values.get(key, info.get_default(call_default_factory=True))
        required = (key not in choice.values and info.is_required()) or default == "???"
        if node is None or key in choice.values or not info.is_required():
            kind = type_text(info.annotation, info.metadata)
            meaning = meanings.get(name, "") or (_first_sentence(node) if node else "")
            kind, meaning = _combine(kind, meaning, choice.notes.get(key, ""))
            yield Option(key, kind, "" if required else as_typed(default), meaning)
        if node is not None:
            yield from schema_options(node, f"{key}.", choice)


def group_option(group: str, choice: Choice) -> Option:
    """Return the row of a group, given what a file chooses in it."""
    name = choice.groups.get(group)
    default = ",".join(name) if isinstance(name, list) else name or "null"
    about = ABOUT[group].partition(". ")[0].rstrip(".")
    return Option(group, f"choice of [{group}]({group}.md)", default, about)


def _node_class(info: FieldInfo) -> type[BaseModel] | None:
    """Return the class of a field that is a part of the configuration."""
    for each in (info.annotation, *typing.get_args(info.annotation)):
        if inspect.isclass(each) and issubclass(each, BaseModel):
            return each
    return None


def _schema_entry(schema: type[BaseModel], path: Sequence[str]) -> tuple[str, str] | None:
    """Return type and meaning of the option at a path below a schema."""
    info = schema.model_fields.get(path[0])
    if info is None:
        return None
    if len(path) > 1:
        node = _node_class(info)
        return _schema_entry(node, path[1:]) if node else None
    meaning = _attributes(schema).get(path[0], "")
    return type_text(info.annotation, info.metadata), meaning


def class_arguments(target: Callable[..., Any]) -> dict[str, tuple[str, str]]:
    """Return type and meaning of each argument of a class or function."""
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    meanings = _attributes(target)
    return {
        name: (type_text(hints.get(name, Any)), meanings.get(name, ""))
        for name in inspect.signature(target).parameters
    }


def _attributes(documented: Callable[..., Any]) -> dict[str, str]:
    """Return the meanings of arguments and attributes, those of base classes included."""
    meanings: dict[str, str] = {}
    for each in (
        reversed(inspect.getmro(documented)) if inspect.isclass(documented) else (documented,)
    ):
        meanings |= read_section(each, "Args") | read_section(each, "Attributes")
    return meanings


def read_section(documented: object, title: str) -> dict[str, str]:
    """Return the entries of a section of a docstring, such as `Args`, as Markdown."""
    text = inspect.cleandoc(getattr(documented, "__doc__", None) or "")
    section = text.partition(f"{title}:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    typed = {"`None`": "`null`", "`True`": "`true`", "`False`": "`false`"}
    found: dict[str, str] = {}
    for names, meaning in entries:
        one_line = escape_markup(re.sub(r"\s+", " ", meaning)).rstrip(".")
        text = re.sub("`(None|True|False)`", lambda match: typed[match[0]], one_line)
        found |= dict.fromkeys(names.split(", "), text)
    return found


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:  # noqa: ANN401
    """Return a type as a phrase: `integer from 1`, say."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0], (*arguments[1:], *metadata))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(each, metadata) for each in arguments))
    if origin is Literal:
        return list_code([as_typed(each) for each in arguments], " or ")
    if origin in (list, tuple, abc.Sequence):
        kinds = dict.fromkeys(type_text(each) for each in arguments if each is not ...)
        plain = " or ".join(kind for kind in kinds if kind != "any value") or "values"
        plural = re.sub(r"^(integer|number|mapping|list)\b", r"\1s", plain)
        return f"{'pair' if origin is tuple and len(arguments) == 2 else 'list'} of {plural}"
    if origin in (dict, Mapping, abc.Mapping):
        inner = re.sub(r"^(integer|number|mapping|list)\b", r"\1s", type_text(arguments[-1]))
        return f"mapping of names to {inner}"
    names = {bool: "`true` or `false`", int: "integer", float: "number", type(None): "`null`"}
    return names.get(annotation, _class_text(annotation)) + _bounds_text(metadata, annotation)


def _class_text(annotation: object) -> str:
    if annotation in (str, Path):
        return "text"
    if inspect.isclass(annotation) and issubclass(annotation, Component):
        return "class with its options"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "mapping with " + list_code(list(annotation.model_fields))
    return "any value"


def _bounds_text(metadata: Sequence[Any], annotation: object) -> str:
    """Return the bounds of a number as a phrase."""
    if annotation not in (int, float):
        return ""
    bounds: dict[str, float] = {}
    for each in metadata:
        for one in getattr(each, "metadata", [each]):
            bounds |= {n: getattr(one, n) for n in ("gt", "ge", "lt", "le") if hasattr(one, n)}
    if annotation is int and bounds.get("gt") is not None:
        bounds["ge"] = bounds.pop("gt") + 1
    if bounds.get("le") == 2**32 - 1:
        bounds.pop("le")
    if bounds.keys() == {"gt", "lt"}:
        return f" between {bounds['gt']} and {bounds['lt']}"
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    return "".join(f" {word} {bounds[name]}" for name, word in words.items() if name in bounds)


def read_choice(group: str, name: str) -> Choice:
    """Return a YAML file in `configs/`, merged with those of its group that it is based on."""
    if (group, name) == ("trainer", "_options"):
        fields = Trainer.model_fields.items()
        return Choice(values={n: info.default for n, info in fields if not info.is_required()})
    text = (configs_folder() / group / f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    count = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comment = [line.removeprefix("#").strip() for line in lines[:count]]
    package = [line.removeprefix("@package ") for line in comment if line.startswith("@package ")]
    choice = Choice([line for line in comment if not line.startswith("@package ")])
    choice.section = "".join(package).replace("_global_", "")
    choice.text = "\n".join(lines[count:])
    content = yaml.safe_load(text) or {}
    node = yaml.compose(text)
    own = Choice()
    _flatten(node, content, "", lines, own)
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            choice.base = choice.base or entry
            _merge(choice, read_choice(group, entry))
        elif isinstance(entry, dict):
            ((key, other),) = entry.items()
            if key.startswith("override "):
                key = key.removeprefix("override ").lstrip("/")
                if group or "/" in key:
                    continue
            key = key.lstrip("/")
            note = next((x for x in lines if re.search(rf"{re.escape(key)}: ", x)), "")
            choice.groups[key] = other
            choice.notes[key] = escape_markup(note.partition("# ")[2])
    _merge(choice, own)
    return choice


def _merge(choice: Choice, other: Choice) -> None:
    """Let the values of another file replace those of a choice."""
    for key in other.values:
        parents = {key.rpartition(".")[0]}
        for old in [old for old in choice.values if old in parents or old.startswith(f"{key}.")]:
            choice.values.pop(old)
    choice.values |= other.values
    choice.notes |= other.notes
    choice.groups |= other.groups


def _flatten(node: Any, content: Any, prefix: str, lines: Sequence[str], choice: Choice) -> None:  # noqa: ANN401
    """Add the values and the comments below a node of a YAML file to a choice."""
    for key_node, value_node in node.value if content else ():
        name, value = key_node.value, content[key_node.value]
        key = f"{prefix}{name}"
        block = isinstance(value_node, yaml.MappingNode) and not value_node.flow_style
        mark = key_node.end_mark if block else value_node.end_mark
        if match := re.search(r"# (.*)", lines[mark.line][mark.column :]):
            choice.notes[key] = escape_markup(match[1])
        if key in ("defaults", "hydra"):
            continue
        if block and value:
            _flatten(value_node, value, f"{key}.", lines, choice)
        else:
            choice.values[key] = value


def _first_sentence(documented: object) -> str:
    text = inspect.cleandoc(getattr(documented, "__doc__", None) or "")
    return escape_markup(re.split(r"(?<=\.)\s", text)[0].rstrip("."))


def _combine(kind: str, meaning: str, note: str) -> tuple[str, str]:
    """Return type and meaning, given the comment beside the value, which is closer to the user.

    A comment may be a mere list of values: `tiny | base`.
    """
    names = note.replace("\\", "").split(" | ")
    if len(names) > 1 and all(re.fullmatch(r"[\w.-]+", name) for name in names):
        return list_code(names, " or ") if kind == "text" else kind, meaning
    return kind, note or meaning


def list_code(names: Sequence[str], between: str = ", ") -> str:
    """Return names as code, one after the other."""
    return between.join(f"`{name}`" for name in names)


def as_typed(value: object) -> str:
    """Return a value as it is typed on a command line."""
    if isinstance(value, str):
        return "" if value == "???" else value
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{as_typed(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_typed, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool | int | float) else "{}"


def escape_markup(text: str) -> str:
    """Escape what Markdown would take for markup outside of code, and link papers."""
    pieces = text.split("`")
    for at in range(0, len(pieces), 2):
        plain = re.sub(r"([*_<\[])", r"\\\1", pieces[at])
        pieces[at] = re.sub(r"\b(\d{4}\.\d{4,5})\b", r"[\1](https://arxiv.org/abs/\1)", plain)
    return "`".join(pieces)
