"""Converts a trained network to another attention, which learns from it; writes a new run.

attnseg convert run=DIR attn=kv
attnseg convert run=DIR attn=window attn.mixing_options.size=4 epochs=10
attnseg convert run=DIR attn=kv epochs=0 surgery=average
attnseg convert run=DIR attn=kv layers=[0,2]
attnseg convert run=DIR attn=kv layers=auto budget=0.005
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat

from attnseg.commands.command import Command, Invocation, deferred
from attnseg.config.nodes import AsTuple
from attnseg.config.training import Conversion, Trainer
from attnseg.errors import ConfigError

OPTIONS = (
    "epochs", "lr", "surgery", "task", "logits", "features", "temperature", "layers", "budget",
)  # fmt: skip
ALLOWED = re.compile(r"(attn|trainer)([.@].*)?|(convert|paths)\..*")
# What `trainer=NAME` always decides; of its other options, those that are not at their defaults.
MACHINE = ("accelerator", "devices", "strategy", "precision", "num_workers", "jobs_per_gpu")

Blocks = Annotated[tuple[NonNegativeInt, ...], AsTuple, Field(min_length=1)]


class ConvertOptions(Conversion):
    """The options of a conversion; all others are those of the parent, the trained run.

    Attributes:
        epochs: passes over the training slices; 0 for surgery only.
        lr: the learning rate; by default that of the parent.
        layers: numbers of the blocks to convert, or `auto`: all that the budget allows.
        budget: largest loss of validation Dice before training, for `layers=auto`.
    """

    epochs: NonNegativeInt
    lr: PositiveFloat | None
    layers: Literal["auto"] | Blocks | None
    budget: PositiveFloat


def run(options: ConvertOptions, invocation: Invocation) -> None:
    """Compose the configuration of the conversion, train it, and measure the network."""
    overrides = list(invocation.overrides)
    keys = check_overrides(overrides)
    raw = invocation.compose(overrides)
    changes = {"trainer": _changed_trainer(raw["trainer"], keys) | {"max_epochs": options.epochs}}
    changes["paths"] = {key: raw["paths"][key] for key in _own_names("paths", keys)}
    if options.lr is not None:
        changes["optimizer"] = {"lr": options.lr}
    names = {name: choice for name, choice in raw["choices"].items() if name.startswith("attn")}
    if "trainer" in keys:
        names["trainer"] = raw["choices"]["trainer"]
    own = ConvertOptions.model_fields.keys() - Conversion.model_fields.keys()
    conversion = Conversion.model_validate(options.model_dump(exclude=set(own)))
    derive_config = deferred("attnseg.conversion.composition:derive_config")
    derive = partial(derive_config, conversion, raw["attn"], names, changes)
    if options.layers == "auto":
        convert = deferred("attnseg.training.layer_conversion:convert_found_layers")
        folder = convert(derive, options.budget, invocation.on_folder)
    else:
        config = derive(options.layers)
        folder = deferred("attnseg.training.train:train")(config, invocation.on_folder)
    deferred("attnseg.benchmark.conversion:measure_conversion")(folder)


def check_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the keys of `KEY=VALUE`.

    Raises:
        ConfigError: a key is not one of the conversion, or the attention is missing.
    """
    keys = [re.sub(r"^[+~]*([^=]*).*", r"\1", each) for each in overrides]
    for key in keys:
        if not ALLOWED.fullmatch(key):
            raise ConfigError(f"{key}: a conversion keeps it as it is in its parent; leave it out")
    if "attn" not in keys:
        raise ConfigError("attn: missing; give the new attention, such as attn=kv")
    if "trainer.max_epochs" in keys:
        raise ConfigError("trainer.max_epochs: not here; use epochs=N")
    return keys


def _changed_trainer(trainer: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the options of the trainer that the command line decides."""
    changed = {name: trainer[name] for name in _own_names("trainer", keys)}
    if "trainer" not in keys:
        return changed
    fields = Trainer.model_fields.items()
    others = {name for name, field in fields if trainer[name] != field.default}
    return {name: trainer[name] for name in (*MACHINE, *others)} | changed


def _own_names(part: str, keys: Sequence[str]) -> list[str]:
    return [key.removeprefix(f"{part}.") for key in keys if key.startswith(f"{part}.")]


def to_options(arguments: Sequence[str]) -> list[str]:
    """Translate `run=DIR`, `epochs=5`, `surgery=average` and the like."""
    translated = []
    for argument in arguments:
        key = argument.partition("=")[0]
        if key == "run":
            argument = f"convert.parent={argument.removeprefix('run=')}"
        elif key in OPTIONS:
            argument = f"convert.{argument}"
        translated.append(argument)
    return translated


COMMAND = Command(
    "convert", __doc__, ConvertOptions, run_invocation=run, part="convert", translate=to_options,
    conveniences=("epochs=5", "epochs=0", "surgery=average", "layers=auto"),
)  # fmt: skip
