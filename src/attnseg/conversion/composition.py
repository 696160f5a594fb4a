"""The configuration of a conversion: that of its parent, with another attention."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnseg.config.budget import BY_LAYER, match_budget
from attnseg.config.training import Config, Conversion, parse_config
from attnseg.errors import ConfigError
from attnseg.runs.reopen import read_spec
from attnseg.runs.run_folder import RunFolder


def derive_config(
    conversion: Conversion,
    attn: Mapping[str, Any] | None,
    choices: Mapping[str, str],
    changes: Mapping[str, Mapping[str, Any]],
    layers: Sequence[int] | None = None,
) -> Config:
    """Return the configuration of the run that converts a finished one.

    Args:
        conversion: of which run, and how.
        attn: the new attention, as in a plain configuration.
        choices: the names chosen for it, by group.
        changes: values of other parts, such as `{"trainer": {"max_epochs": 5}}`.
        layers: numbers of the blocks that get it; the others keep theirs. `None` is all.

    Raises:
        ConfigError: the parent is not finished, or has no attention.
    """
    parent = RunFolder(conversion.parent)
    spec, config = read_spec(parent), parent.config
    if config.attn is None:
        raise ConfigError(
            f"run: {parent} is of a model without attention; give a run of another model"
        )
    if layers is not None:
        attn, choices = divide_blocks(config, attn, choices, layers)
    # The MLPs stay as wide as the parent's budget made them.
    channels = (spec.in_channels, spec.labels.channels)
    model = match_budget(config.model, config.attn, *channels, spec.size)
    plain = config.model_copy(
        update={"model": model.model_copy(update={"pretrained": None})}
    ).model_dump(mode="json", by_alias=True)
    # Technical choices of the parent's training that would not fit.
    plain["trainer"] |= {"repeat": False, "resume_changed": False, "auto_batch": False}
    if Path(config.paths.outputs).resolve() != parent.outputs:  # The folder has moved.
        plain["paths"]["outputs"] = str(parent.outputs)
    for part, values in changes.items():
        plain[part] |= values
    others = {name: choice for name, choice in config.choices.items() if _is_other(name)}
    return parse_config(
        {
            **plain,
            "attn": attn,
            "conversion": conversion.model_dump(),
            "choices": {**others, **choices},
        }
    )


def _is_other(group: str) -> bool:
    return group != "attn" and not group.startswith("attn@")


def divide_blocks(
    parent: Config,
    attn: Mapping[str, Any] | None,
    choices: Mapping[str, str],
    layers: Sequence[int],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a new attention in some blocks and the parent's in the rest, and its choices."""
    own = None if parent.attn is None else parent.attn.model_dump(mode="json", by_alias=True)
    node = {"_target_": BY_LAYER, "default": own, "other": attn, "layers": list(layers)}
    names = {group: name for group, name in choices.items() if _is_other(group)}
    names["attn"] = BY_LAYER.split(".")[-2]
    for part, given in (("default", parent.choices), ("other", choices)):
        for group, name in given.items():
            if group == "attn" or group.startswith("attn@attn."):
                names[f"attn@attn.{part}{group.removeprefix('attn').removeprefix('@attn')}"] = name
    return node, names
