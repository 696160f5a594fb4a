"""Completion of command lines: commands, groups, keys and choices, from the same files as help."""

import contextlib
from collections.abc import Iterator, Mapping

from omegaconf import OmegaConf

from attnseg.cli.help import list_groups_of
from attnseg.commands.command import Command
from attnseg.config.composition import compose
from attnseg.config.folder import list_choices
from attnseg.config.literals import literal_values
from attnseg.errors import ConfigError
from attnseg.plugins import add_files, split_arguments

FLAGS = ("--help ", "--cfg ", "--multirun ", "--version ")
SHOWN_BY_CFG = ("job ", "hydra ", "all ")


def complete_line(line: str, commands: Mapping[str, Command]) -> list[str]:
    """Return what the last word of a command line can become.

    A result that ends a word has a space at its end. No result means that a file may follow.

    Args:
        line: the line up to the cursor, with the program's name.
        commands: all commands by name.
    """
    words = line.split()[1:] + ([""] if line.endswith(" ") else [])
    word = words[-1] if words else ""
    if len(words) < 2:
        known = [f"{name} " for name in commands]
    elif (command := commands.get(words[0])) is None:
        return []
    elif words[-2] in ("--cfg", "-c"):
        known = list(SHOWN_BY_CFG)
    elif word.startswith("-"):
        known = list(FLAGS)
    else:
        files, others = split_arguments([each for each in words[1:-1] if each[:1] != "-"])
        with contextlib.suppress(ConfigError):  # A wrong file is reported when the line is run.
            add_files(files)
        others = command.translate(others)
        known = [f"{each} " for each in command.conveniences]
        known += complete_override(command, word, others)
    return sorted(each for each in known if each.startswith(word))


def complete_override(command: Command, word: str, others: list[str]) -> Iterator[str]:
    """Yield what a `KEY=VALUE` can become, given the other overrides of the line."""
    key, equals, value = word.partition("=")
    if equals and (choices := list_choices(key.partition("@")[0].lstrip("+"))):
        before = value[: max(value.rfind(","), value.rfind("[")) + 1]
        yield from (f"{key}={before}{choice} " for choice in choices)
        return
    try:
        composed = compose(command.config_name, others)
    except Exception:  # Another word of the line may be wrong, which is reported when it is run.
        return
    if equals:
        of_schema = literal_values(command.options, key.removeprefix(f"{command.part}."))
        is_switch = isinstance(OmegaConf.select(composed, key), bool)
        values = of_schema or ["true", "false"] * is_switch
        yield from (f"{key}={value} " for value in values)
        return
    parent = key.rpartition(".")[0]
    node = OmegaConf.select(composed, parent) if parent else composed
    for name in node if OmegaConf.is_dict(node) else ():
        if name != "hydra":
            ending = "." if OmegaConf.is_dict(node._get_node(name)) else "="
            yield f"{parent}.{name!s}{ending}".lstrip(".")
    if not parent:
        yield from (f"{group}=" for group in list_groups_of(composed))
