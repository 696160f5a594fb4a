"""Composes configurations by Hydra: YAML files, the defaults of fields, and overrides.

Importing this module tells Hydra of the defaults that stand at fields, and of the folders
`configs/` in the working folder and of plugins.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from attnseg.config.aliases import check_aliases
from attnseg.config.folder import configs_folder, list_groups, own_folder, plugin_folders
from attnseg.config.training import Trainer
from attnseg.errors import ConfigError, first_line


class OwnConfigs(SearchPathPlugin):
    """Lets Hydra search the folders of the user and of plugins, after the files of this package."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders that exist; by `file://`, since `pkg://` would import a plugin."""
        if (own := own_folder()) is not None:
            search_path.append("working-folder", f"file://{own}")
        for folder in plugin_folders():
            search_path.append("plugin", f"file://{folder}")


def check_before_loading(files: type[FileConfigSource]) -> None:
    """Let a class that reads the files of folders look first at what their aliases stand for."""
    load = files.load_config

    def load_checked(source: FileConfigSource, config_path: str) -> ConfigResult:
        path = Path(source.path, source._normalize_file_name(config_path))
        # Hydra has its own words for a file that is not UTF-8.
        with contextlib.suppress(UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            text = path.read_text(encoding="utf-8")
            try:
                check_aliases(text)
            except ValueError as error:
                raise ConfigError(f"{path}: {first_line(error)}") from error
        return load(source, config_path)

    files.load_config = load_checked  # type: ignore[assignment, method-assign]


Plugins.instance().register(OwnConfigs)
# Hydra may have read its module twice; the workers of launchers get the class that is importable. A
# class of our own in the registry would be refused there.
registered: Any = SourcesRegistry.instance().resolve("file")
check_before_loading(FileConfigSource)
if registered is not FileConfigSource:
    check_before_loading(registered)
DEFAULTS = {name: f.default for name, f in Trainer.model_fields.items() if not f.is_required()}
ConfigStore.instance().store("_options", DEFAULTS, group="trainer")


@contextlib.contextmanager
def initialized() -> Iterator[None]:
    """Let Hydra compose within the block, also inside a command that Hydra runs."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with hydra.initialize_config_dir(str(configs_folder()), version_base="1.3"):
        yield


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a configuration such as `train`; Hydra's own part is under `hydra`."""
    with initialized():
        return hydra.compose(config_name, list(overrides), return_hydra_config=True)


def to_raw(composed: DictConfig, choices: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return a configuration as plain containers, with the choice made in each group.

    Args:
        composed: with Hydra's own part, or without.
        choices: the name chosen in each group; by default those in Hydra's own part.
    """
    if choices is None:
        choices = composed.hydra.runtime.choices
    keys: list[Any] = [key for key in composed if key != "hydra"]  # A wrong one may be no text.
    own = OmegaConf.masked_copy(composed, keys)
    try:
        raw: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error)
        raise ConfigError(f"{key}: not set; give it as {key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {first_line(error)}; correct the value") from error
    if "plugins" in raw:
        raise ConfigError(
            "plugins: in a file; only the command line may name code: plugins=[my_idea.py]"
        )
    raw["choices"] = {
        name: choice
        for name, choice in sorted(choices.items())
        if isinstance(choice, str) and "/" not in name
    }
    return dict(raw)


def known_names(config_name: str, parent: str, choices: Sequence[str] = ()) -> list[str]:
    """Return the keys under a dotted key in a configuration; if that is empty, the groups too.

    The choices are overrides such as `model=setr`: each brings keys of its own.
    """
    try:
        node: Any = compose(config_name, choices)
    except HydraException:  # The mistake may be in a choice.
        node = compose(config_name, ())
    if parent:
        node = OmegaConf.select(node, parent)
        return [str(key) for key in node] if OmegaConf.is_dict(node) else []
    groups = {*list_groups()} & {*node.hydra.runtime.choices}
    return sorted({*map(str, node), *groups} - {"hydra"})
