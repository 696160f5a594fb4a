"""Writes a part of your own, its choice, and a test of it, as the smallest example that works.

attnseg new attention my_idea
attnseg new model my_model        likewise dataset and loss
"""

import importlib.util
import keyword
import re
from pathlib import Path
from typing import Literal

from attnseg.commands.command import Command
from attnseg.commands.new_parts import ATTENTION, DATASET, LOSS, MODEL, Files
from attnseg.config.folder import list_choices
from attnseg.config.nodes import CommandOptions
from attnseg.errors import ConfigError
from attnseg.files import write_text

KINDS: dict[str, tuple[str, Files]] = {  # configuration group, and what is written
    "attention": ("attn", ATTENTION),
    "model": ("model", MODEL),
    "dataset": ("dataset", DATASET),
    "loss": ("loss", LOSS),
}


class New(CommandOptions):
    """Options of `attnseg new`.

    Attributes:
        kind: of the part.
        name: of the module and of the choice.
    """

    kind: Literal["attention", "model", "dataset", "loss"]
    name: str


def run(options: New) -> None:
    """Write three files into the working folder, and print how they are used.

    Raises:
        ConfigError: the name is not allowed or taken, or a file is there already.
    """
    group, files = KINDS[options.kind]
    name = options.name
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ConfigError(f"name: {name!r} is not a valid module name; use one such as my_idea")
    paths = [Path(f"{name}.py"), Path("configs", group, f"{name}.yaml"), Path(f"test_{name}.py")]
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: is there already; choose another name or remove it")
    modules = (name, f"attnseg.attention.{name}")  # mixings are named by their module
    if name in list_choices(group) or any(map(importlib.util.find_spec, modules)):
        raise ConfigError(
            f"name: {name} is taken by a choice of {group} or a module; choose another"
        )
    class_name = "".join(word.capitalize() for word in name.split("_"))
    for path, text in zip(paths, files, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text.replace("my_idea", name).replace("MyIdea", class_name))
    print("Written:", *paths)
    print(f"Test it:  pytest {paths[2]}")
    print(f"Train it: attnseg train plugins=[{paths[0]}] {group}={name} trainer.max_epochs=2")


def from_words(arguments: list[str]) -> list[str]:
    """Let the first two words stand for `kind=` and `name=`."""
    keys = iter(("kind", "name"))
    plain = re.compile(r"\w+")
    return [
        f"{key}={word}" if plain.fullmatch(word) and (key := next(keys, "")) else word
        for word in arguments
    ]


COMMAND = Command("new", __doc__, New, run, translate=from_words, conveniences=tuple(KINDS))
