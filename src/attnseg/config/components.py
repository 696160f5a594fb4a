"""Builds model, loss, optimizer, schedule, transforms and metric profile from a configuration."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from attnseg.config.budget import build_model
from attnseg.config.build import build, factory
from attnseg.config.composition import compose, to_raw
from attnseg.config.errors import nearest, parse_options
from attnseg.config.folder import list_choices
from attnseg.config.nodes import Component
from attnseg.config.training import Config, Model
from attnseg.data.augment import Transforms
from attnseg.data.device_augment import BatchAugment
from attnseg.data.reader import Reader
from attnseg.errors import ConfigError
from attnseg.losses.loss import SegmentationLoss
from attnseg.metrics.profiles.profile import Profile
from attnseg.models.model import SegmentationModel
from attnseg.models.pretrained import LoadReport, load_file_into
from attnseg.schedules.schedule import Schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Components:
    """The objects that a configuration names.

    Attributes:
        optimizer: builds the optimizer from parameter groups.
        schedule: returns the learning-rate factor of a step.
        transforms: augmentation of training slices.
        profile: metric convention of the scores.
        loaded: the weights that the model starts from; `None` for those of the initialisation.
    """

    model: SegmentationModel
    loss: SegmentationLoss
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    transforms: Transforms | BatchAugment
    profile: Profile
    loaded: LoadReport | None


def build_components(config: Config, reader: Reader) -> Components:
    """Build and try everything before any data is read, so that mistakes show at once.

    The reader of the dataset knows its channels and classes. A `ConfigError` names an option that
    is unknown, of another type, out of range, or at odds with others.
    """
    model = build_model(
        config.model,
        config.attn,
        reader.channels * config.dataset.slices,
        reader.labels.channels,
        config.dataset.image_size,
    )
    loaded = None
    if config.model.pretrained is not None:
        loaded = load_file_into(model, config.model.pretrained)
        log.info("%s: %s", config.model.pretrained, loaded)
    loss = build("loss", config.loss, overlapping=reader.labels.overlapping)
    if reader.labels.ignore and config.loss.options.get("batch") is False:
        raise ConfigError(
            "loss.batch: pictures cannot be averaged one by one where the dataset has a label to "
            "ignore; use loss.batch=true"
        )
    logits = torch.zeros(1, reader.labels.channels, 2, 2)
    try:
        loss(logits, logits if reader.labels.overlapping else logits[:, 0])
    except ValueError as error:
        raise ConfigError(f"loss: {error}") from error
    build("optimizer", config.optimizer, params=[torch.nn.Parameter(torch.zeros(1))])
    schedule = build("scheduler", config.scheduler)
    ((name, convention),) = config.profile.items()
    profile = build(f"profile.{name}", convention)
    transforms = build("augment", config.augment)
    return Components(model, loss, optimizer_factory(config), schedule, transforms, profile, loaded)


def optimizer_factory(config: Config) -> Callable[..., torch.optim.Optimizer]:
    """Return a function that builds the optimizer from `params`.

    The optimizer is fused, so that it passes over the weights once per step. A fused one would
    divide float16 gradients by the scaler's factor itself, after they have been clipped: there
    PyTorch chooses, and takes several weights at a time. It has no fused SGD for sharded weights.
    """
    make = factory("optimizer", config.optimizer, given=("params", "fused"))
    sharded = config.trainer.strategy == "fsdp" and config.optimizer.target.endswith(".SGD")
    fused = None if sharded or config.trainer.precision == "16-mixed" else True
    return partial(make, fused=fused)


def attention_component(name: str, **options: Any) -> Component:  # noqa: ANN401
    """Return the component of a named attention, with options changed."""
    node = _compose_choices(attn=name)["attn"]
    if not node:
        raise ConfigError(f"attn: {name} stands for models without attention; choose another")
    return Component.model_validate({**node, **options})


def model_nodes(
    name: str,
    attn: str | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[Model, Component | None]:
    """Return a named model with options changed, and its attention: by default its own.

    The option `tokens` may be a choice of that group.
    """
    choices = {} if attn is None else {"attn": attn}
    if isinstance(options.get("tokens"), str):
        choices["tokens"] = options.pop("tokens")
    raw = _compose_choices(model=name, **choices)
    model = {**raw["model"], "pretrained": None, "match": None, **options}
    own = Component.model_validate(raw["attn"]) if raw["attn"] else None
    return parse_options(Model, model, "model"), own


def _compose_choices(**choices: str) -> dict[str, Any]:
    """Compose a training run; a `ConfigError` names a choice that does not exist."""
    for group, name in choices.items():
        if name not in (known := list_choices(group)):
            raise ConfigError(f"{group}: no {name!r}; {nearest(name, known)}")
    return to_raw(compose("train", [f"{group}={name}" for group, name in choices.items()]))
