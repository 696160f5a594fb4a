"""The reference has every option of every command and every group, as Hydra composes them."""

import re

import pytest
from omegaconf import OmegaConf

from attnseg.cli.program import COMMANDS
from attnseg.config.composition import compose
from attnseg.config.folder import list_choices, list_groups
from attnseg.config.training import Config
from scripts import reference
from scripts.options import as_typed

pytestmark = pytest.mark.full
REQUIRED = "???"


def leaves(node, prefix=""):
    """Dotted keys and values of a configuration; an empty mapping is a value, `_target_` none."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}", value


def composed(config, *overrides):
    plain = OmegaConf.masked_copy(
        whole := compose(config, overrides), [key for key in whole if key != "hydra"]
    )
    return OmegaConf.to_container(plain, resolve=False)


def rows(page):
    """Default, type and meaning of each option on a page."""
    found = re.findall(r"(?m)^\| `([^`]+)` \| (.*?) \| `?(.*?)`? \| (.*) \|$", "\n".join(page))
    return {key: (default, kind, meaning) for key, kind, default, meaning in found}


@pytest.mark.parametrize("group", sorted(set(list_groups()) - set(reference.PRESETS)))
def test_every_option_of_a_group_has_type_default_and_meaning(group):
    page = reference.group_page(group)
    assert all(f"## {group}={name}" in page for name in list_choices(group))
    wrong = {}
    for name in list_choices(group):
        documented = {option.key: option for option in reference.choice_options(group, name)}
        several = group in ("profile", "logger")
        node = composed("train", f"{group}=[{name}]" if several else f"{group}={name}")
        choice = reference.read_choice(group, name)
        section = choice.section or group
        for part in section.split("."):
            node = node.get(part) or {}
        within = {key.rpartition(".")[2] for key in documented if key.startswith("attn@")}
        for key, value in leaves(node):
            first = key.split(".")[0]
            if first in within or (group == "model" and first == "tokens"):
                continue  # the page of another group has it
            if group == "tokens" and first not in choice.values:
                continue  # of the model
            option = documented.get(f"{section}.{key}")
            if option is None:
                wrong[name, key] = "not in the reference"
            elif option.default != as_typed(value):
                wrong[name, key] = f"{option.default} instead of {value}"
        for option in documented.values():
            if not option.kind or not option.meaning:
                wrong[name, option.key] = "no type" if not option.kind else "no meaning"
    remedy = "write a comment beside it in configs/, or into its class's docstring"
    assert not wrong, f"{remedy}: {list(wrong.items())}"


def test_every_option_of_every_command_has_type_default_and_meaning():
    page = "\n".join(reference.commands_page())
    assert re.findall(r"(?m)^## attnseg ([\w-]+)$", page) == list(COMMANDS)
    training = rows(reference.training_page())
    wrong = {}
    for name, command in COMMANDS.items():
        options = {option.key: option for option in reference.command_options(command)}
        shared = Config.model_fields if issubclass(command.options, Config) else {}
        for key, _ in leaves(composed(command.config_name)):
            first = key.split(".")[0]
            if command.part and not key.startswith(f"{command.part}."):
                continue  # of the training that the command composes
            known = options.keys() | training.keys()
            parents = {".".join(key.split(".")[:n]) for n in range(1, key.count(".") + 2)}
            if first not in shared and not parents & known:
                wrong[name, key] = "not in the reference"
        for option in options.values():
            if not option.kind or not option.meaning:
                wrong[name, option.key] = "no type or no meaning"
    for key, _ in leaves(composed("train")):
        if key not in training and key.split(".")[0] not in training:
            wrong["train", key] = "not in the reference"
    wrong |= {key: row for key, row in training.items() if not all(row[1:])}
    assert not wrong, list(wrong.items())
