"""What a configuration builds for a dataset's images."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attnseg.data.augment import Transforms
from attnseg.data.reader import Reader
from attnseg.engine.budget import build_model
from attnseg.engine.build import build, factory
from attnseg.engine.schedules import Schedule
from attnseg.engine.schema import Config
from attnseg.errors import ConfigError
from attnseg.losses.loss import SegmentationLoss
from attnseg.metrics.profiles.profile import Profile
from attnseg.models.model import SegmentationModel
from attnseg.models.pretrained import load_file_into

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a configuration builds, all of it before any data is read."""

    model: SegmentationModel
    loss: SegmentationLoss
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    transforms: Transforms
    profile: Profile


def build_parts(config: Config, reader: Reader) -> Parts:
    """Build everything for a reader's images; each part is tried, so that none fails later.

    Raises:
        ConfigError: an option is unknown, of another type, out of range, or fits no other.
    """
    channels = len(reader.classes) + (0 if reader.multilabel else 1)
    model = build_model(
        config.model,
        config.attn,
        reader.channels * config.dataset.slices,
        channels,
        config.dataset.image_size,
    )
    if config.model.pretrained is not None:
        loaded = load_file_into(model, config.model.pretrained)
        log.info("%s: %s", config.model.pretrained, loaded)
    loss = build("loss", config.loss, multilabel=reader.multilabel)
    logits = torch.zeros(1, channels, 2, 2)
    try:
        loss(logits, logits if reader.multilabel else logits[:, 0])
    except ValueError as error:
        raise ConfigError(f"loss: {error}") from error
    build("optimizer", config.optimizer, params=[torch.nn.Parameter(torch.zeros(1))])
    optimizer = factory("optimizer", config.optimizer, given=("params",))
    schedule = build("scheduler", config.scheduler)
    ((name, convention),) = config.profile.items()
    profile = build(f"profile.{name}", convention)
    return Parts(model, loss, optimizer, schedule, build("augment", config.augment), profile)
