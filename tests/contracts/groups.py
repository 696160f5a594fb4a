"""The names in each configuration group, found as Hydra finds them."""

import copy
from functools import cache
from typing import Any

from omegaconf import OmegaConf, open_dict

from attnseg.config import composition
from attnseg.config.folder import configs_folder

FOLDER = configs_folder()


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / group).glob("[!_]*.yaml"))


def compose(*overrides: str) -> dict[str, Any]:
    """The plain configuration for a command line, with placeholder for what is mandatory."""
    return copy.deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    composed = composition.compose("train", overrides)
    with open_dict(composed):
        del composed["hydra"]
    if OmegaConf.is_missing(composed.dataset, "root"):
        composed.dataset.root = "somewhere"
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return {**plain, "choices": {"dataset": "-", "model": "-", "attn": "-"}}
