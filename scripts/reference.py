"""Pages of the documentation that are written from the code: every option, command and function.

`scripts/build_site.py` calls `write_pages`.
"""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import attnseg
from attnseg.cli.program import COMMANDS
from attnseg.commands.command import Command
from attnseg.config.folder import list_choices, list_groups
from attnseg.config.training import Config
from attnseg.runs.run_folder import RunFolder
from scripts.options import (
    ABOUT,
    Choice,
    Option,
    choice_options,
    escape_markup,
    group_option,
    list_code,
    read_choice,
    schema_options,
)

FAMILIES = ("_probe",)  # files whose choices differ in little
PRESETS = ("experiment", "sweep", "search", "workload")  # choices that set options of others


def write_pages(folder: Path) -> list[str]:
    """Write the reference into a folder; return the names of its pages in order."""
    groups = sorted(list_groups())
    pages = {
        "README": index_page(groups),
        "commands": commands_page(),
        "training": training_page(),
        **{group: group_page(group) for group in groups},
        "python": python_page(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in pages.items():
        (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(pages)


def index_page(groups: Sequence[str]) -> list[str]:
    """Return the first page: groups, and what can stand on every command line."""
    rows = [f"| [`{g}`]({g}.md) | {ABOUT[g]} | {list_code(list_choices(g))} |" for g in groups]
    return [
        "# Reference",
        "",
        "A command line is `attnseg COMMAND KEY=VALUE ...`. There are pages on "
        "[all commands](commands.md), [the options of a training](training.md), every group of "
        "options (below), and [the functions for Python](python.md).",
        "",
        "`GROUP=NAME` chooses a file of `configs/GROUP/`, which sets many options at once; "
        "`GROUP.KEY=VALUE` changes one of them.",
        "",
        "| on every command line | |",
        "|---|---|",
        "| `--help` | shows choices, values and examples |",
        "| `--cfg job` | prints the configuration and leaves |",
        "| `-m KEY=A,B` | starts one run for each value; of several keys, for each combination |",
        "| `+KEY=VALUE` | sets an option that the configuration does not list |",
        "| `plugins=[FILE]` | uses the classes of a file: [Extending](../extending.md) |",
        "",
        "## Groups",
        "",
        "| group | | choices |",
        "|---|---|---|",
        *rows,
        "",
        "This reference is written from the code when the site is built.",
    ]


def commands_page() -> list[str]:
    """Return the page of all commands."""
    lines = ["# Commands", ""]
    shown: dict[type[BaseModel], str] = {}
    for command in COMMANDS.values():
        lines += [f"## attnseg {command.name}", "", escape_markup(command.header), "", "```text"]
        lines += [command.examples, "```", ""]
        first = shown.setdefault(command.options, command.name)
        if first == command.name or command.options is Config:
            lines += _table(command_options(command))
        else:
            lines += [f"It takes the options of [attnseg {first}](#attnseg-{first}).", ""]
        if issubclass(command.options, Config):
            lines += ["It also takes all [options of a training](training.md).", ""]
    return lines


def command_options(command: Command) -> list[Option]:
    """Return the options of a command, without those of a training."""
    choice = read_choice("", command.config_name)
    prefix = f"{command.part}." if command.part else ""
    shared = Config.model_fields if issubclass(command.options, Config) else ()
    options = schema_options(command.options, prefix, choice)
    return [option for option in options if option.key.split(".")[0] not in shared]


def training_page() -> list[str]:
    """Return the page of a training's options: its groups, and the options of none."""
    choice = read_choice("", "train")
    groups = [group_option(group, choice) for group in choice.groups]
    options = schema_options(Config, "", choice)
    return [
        "# Options of a training",
        "",
        "`attnseg train`, `python train.py` and every other command that trains take these "
        'options. In Python, `trainer.max_epochs=1` is `attnseg.train(trainer={"max_epochs": 1})`.',
        "",
        "## Groups",
        "",
        *_table(groups),
        "## Options of no group",
        "",
        *_table([each for each in options if each.key.split(".")[0] not in choice.groups]),
    ]


def group_page(group: str) -> list[str]:
    """Return the page of a group: what most choices have in common, and each choice."""
    lines = [f"# {group}", "", ABOUT[group], ""]
    choices = {name: read_choice(group, name) for name in list_choices(group)}
    options = {name: [] if group in PRESETS else choice_options(group, name) for name in choices}
    families = {choice.base if choice.base in FAMILIES else n: n for n, choice in choices.items()}
    counts = Counter(option for name in families.values() for option in options[name])
    common = {o.key: o for o, count in counts.items() if 2 * count > len(families) > 2}
    if common:
        lines += ["## Options of most choices", "", *_table(list(common.values()))]
    first: dict[str, str] = {}
    for name, choice in choices.items():
        own = options[name]
        lines += [f"## {group}={name}", "", *_comment_lines(choice), ""]
        if group in PRESETS:
            lines += ["```yaml", choice.text.strip(), "```", ""]
        if group == "attn" and name != "none":
            lines += [f"[Equation, reach and cost](../attentions/{name}.md).", ""]
        alike = first.setdefault(choice.base, name) if choice.base in FAMILIES else name
        known = [*common.values()] if alike == name else options[alike]
        lines += _table([option for option in own if option not in known])
        missing = sorted(common.keys() - {option.key for option in own})
        if alike != name:
            lines += [f"All else is as with `{group}={alike}`.", ""]
        elif missing and own:
            lines += [f"It does not take {list_code(missing)}.", ""]
    return lines


def python_page() -> list[str]:
    """Return the page of the functions for Python, and of the run folder that they return."""
    lines = ["# Python", "", inspect.cleandoc(attnseg.train.__globals__["__doc__"]), ""]
    lines += ["Options have the names of the [command line](README.md).", ""]
    for name in attnseg.__all__:
        lines += [f"## attnseg.{name}", "", *_document(getattr(attnseg, name), name)]
    lines += ["## RunFolder", "", *_document(RunFolder, "")]
    for name, member in inspect.getmembers(RunFolder):
        function = getattr(member, "func", None) or getattr(member, "fget", None) or member
        if not name.startswith("_") and inspect.isfunction(function):
            called = function is member
            lines += [f"### RunFolder.{name}", "", *_document(function, name if called else "")]
    return lines


def _document(documented: Callable[..., Any], name: str) -> list[str]:
    """Return signature and docstring as Markdown; without a name, there is no signature."""
    lines = []
    if name:
        signature = re.sub(r"(\w+\.)+(\w+)", r"\2", str(inspect.signature(documented)))
        lines = ["```python", f"{name}{signature.replace(chr(39), '')}", "```", ""]
    text = inspect.cleandoc(documented.__doc__ or "")
    text = re.sub(r"(?m)^(Args|Attributes|Raises|Returns):\n+", r"**\1**\n\n", text)
    text = re.sub(r"(?m)^ {4}(\w+): ", r"- `\1`: ", text)
    text = re.sub(r"(?m)^ {4,}(?=\S)", "  ", text)
    return [*lines, text, ""]


def _table(options: Sequence[Option]) -> list[str]:
    rows = [option.as_row() for option in options]
    head = ["| option | type | default | meaning |", "|---|---|---|---|"]
    # The style sheet lays these tables out for phones.
    return ['<div class="options" markdown>', "", *head, *rows, "", "</div>", ""] if rows else []


def _comment_lines(choice: Choice) -> list[str]:
    """Return the comment at the top of a file as Markdown; its command lines become one block."""
    lines: list[str] = []
    within = False  # a block of command lines
    for line in choice.comment:
        goes_on = within and lines[-1].endswith("\\")
        command = goes_on or bool(re.match(r"(python train\.py|attnseg|\.\.\.) ", line))
        lines += [""] if command != within else []
        within = command
        if command:
            lines += [f"        {line}" if goes_on else f"    {line}"]
            continue
        marked = re.sub(r"(?<![`\w/])([\w.@]+=[^\s,;()]*[^\s,;:.()])", r"`\1`", line)
        lines += [re.sub(r"\bdocs/([\w\\]+\.md)", _link_page, escape_markup(marked))]
    return lines


def _link_page(match: re.Match[str]) -> str:
    """Return a link to a page of docs/ that is named in an escaped text."""
    name = match[1].replace("\\", "")
    return f"[{match[0]}](../{name})"
