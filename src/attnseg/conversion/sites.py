"""The attentions of a model that the option `attn` decides, by block."""

from typing import Any

import torch
from torch import nn

from attnseg.config.budget import build_model
from attnseg.config.build import ATTENTION, factory
from attnseg.config.cost import find_attentions
from attnseg.config.training import Config


def find_sites(config: Config, in_channels: int, num_classes: int) -> dict[int, list[str]]:
    """Return the names of these attentions in the configured model, by number of block.

    Attentions with an option of their own, such as `model.channel_attn`, are left out.
    """
    if config.attn is None:
        return {}
    make, made = factory("attn", config.attn, ATTENTION), list[nn.Module]()

    def note(*given: Any, **options: Any) -> nn.Module:  # noqa: ANN401
        made.append(make(*given, **options))
        return made[-1]

    size = config.dataset.image_size
    with torch.device("meta"):
        model = build_model(config.model, note, in_channels, num_classes, size)
    sites: dict[int, list[str]] = {}
    for name, mixer in find_attentions(model).items():
        if any(mixer is one for one in made):
            sites.setdefault(mixer.place.block, []).append(name)
    return sites
