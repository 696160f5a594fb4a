"""The text of `--help`. Hydra's own is slow: it composes anew for every group that it lists."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

from attnseg.commands.command import Command
from attnseg.config.composition import compose
from attnseg.config.folder import list_choices
from attnseg.plugins import list_plugins


def help_text(command: Command, overrides: Sequence[str]) -> str:
    """Return a command's sentence, choices, values under some overrides, and examples."""
    composed = compose(command.config_name, overrides)
    choices = [f"{group}: {', '.join(list_choices(group))}" for group in list_groups_of(composed)]
    plugins = ", ".join(map(str, list_plugins().values()))
    with open_dict(composed):
        del composed["hydra"]
    sections = [
        command.header,
        *(["== Choices: GROUP=NAME ==", "\n".join(choices)] if choices else []),
        *([f"Plugins: {plugins}"] if plugins else []),
        "== Values: KEY=VALUE ==",
        OmegaConf.to_yaml(composed).rstrip(),
        command.examples,
    ]
    return "\n\n".join(sections)


def list_groups_of(composed: DictConfig) -> list[str]:
    """Return the groups from which a configuration with Hydra's own part was composed."""
    groups = sorted({*composed.hydra.runtime.choices, *composed} - {"hydra"})
    return [group for group in groups if list_choices(group)]
