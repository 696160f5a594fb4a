"""The folders of YAML files that configurations are composed from."""

from pathlib import Path

import yaml

from attnseg.plugins import list_plugins

NO_ATTENTION = "none"  # the choice of `attn` for models without attention


def configs_folder() -> Path:
    """Return the folder `configs/` of the installed package, or of the clone it is run from."""
    shipped = Path(__file__).parents[1] / "configs"  # in a wheel
    return shipped if shipped.is_dir() else Path(__file__).parents[3] / "configs"


def own_folder() -> Path | None:
    """Return the folder `configs/` of the working folder, if the user keeps one there."""
    own = Path("configs").resolve()
    return own if own.is_dir() and own != configs_folder().resolve() else None


def plugin_folders() -> list[Path]:
    """Return the folders `configs/` of the plugins."""
    return [plugin.configs for plugin in list_plugins().values() if plugin.configs.is_dir()]


def _choice_folders() -> list[Path]:
    """Return all folders with choices, in the order in which Hydra searches them."""
    return [f for f in (configs_folder(), own_folder(), *plugin_folders()) if f is not None]


def list_choices(group: str) -> list[str]:
    """Return a group's choices, those of the user and of plugins included.

    A `_NAME.yaml` is part of other files.
    """
    if not group or "/" in group or "." in group:
        return []
    return sorted({p.stem for f in _choice_folders() for p in (f / group).glob("[!_]*.yaml")})


def _read_choice(group: str, name: str) -> str:
    """Return the text of the file of a choice that exists."""
    paths = (folder / group / f"{name}.yaml" for folder in _choice_folders())
    return next(path for path in paths if path.is_file()).read_text(encoding="utf-8")


def read_about(group: str, name: str) -> str:
    """Return the comment in the first line of a choice's file, or nothing."""
    first = _read_choice(group, name).partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def list_attentions() -> list[str]:
    """Return the attentions, without the choice that stands for models without one."""
    return [name for name in list_choices("attn") if name != NO_ATTENTION]


def read_defaults(group: str, name: str) -> list[str | dict[str, str]]:
    """Return the defaults list of a choice's file: the choices that it makes itself."""
    options = yaml.safe_load(_read_choice(group, name)) or {}
    return list(options.get("defaults", []))


def attentions_of(model: str) -> list[str]:
    """Return the attentions that a model can have; of a model without attention, `NO_ATTENTION`."""
    # Such a model says so among its defaults.
    attends = {"override /attn@_global_.attn": NO_ATTENTION} not in read_defaults("model", model)
    return list_attentions() if attends else [NO_ATTENTION]


def list_groups() -> list[str]:
    """Return the names of all groups."""
    return [path.name for path in configs_folder().iterdir() if list_choices(path.name)]
