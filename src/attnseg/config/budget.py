"""Models at a budget: a cheaper attention gets wider MLPs until the cost of QKV is spent."""

import logging
from collections.abc import Callable
from functools import partial

import torch

from attnseg.config import cost
from attnseg.config.build import ATTENTION, build, factory
from attnseg.config.schema import Component, Model
from attnseg.errors import ConfigError
from attnseg.models.model import SegmentationModel

log = logging.getLogger(__name__)

TOLERANCE = 0.01  # share of the budget
LARGEST_RATIO = 64.0


def build_model(
    model: Model,
    attn: Component,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
) -> SegmentationModel:
    """Build a model with an attention, at the budget asked for.

    Raises:
        ConfigError: an option is unknown, of another type, out of range, or fits no other.
    """
    build("attn", attn, dim=8, num_heads=1)  # names its own key if it is wrong

    def make(attn: Component, ratio: float) -> SegmentationModel:
        built: SegmentationModel = build(
            "model",
            model.model_copy(update={"mlp_ratio": ratio}),
            in_channels=in_channels,
            num_classes=num_classes,
            image_size=image_size,
            attn=factory("attn", attn, ATTENTION),
        )
        return built

    ratio = model.mlp_ratio
    if model.match is not None:
        qkv = {"sharing": "none", "mixing": "softmax", "mixing_options": {}}
        ratio = match(
            model.match,
            partial(make, attn.model_copy(update=qkv)),
            partial(make, attn),
            ratio,
            (in_channels, *image_size),
        )
        log.info("MLP ratio %g spends the %s of QKV", ratio, model.match)
    return make(attn, ratio)


def match(
    budget: str,
    baseline: Callable[[float], SegmentationModel],
    variant: Callable[[float], SegmentationModel],
    ratio: float,
    image: tuple[int, int, int],
) -> float:
    """Find the MLP ratio at which a variant costs what the baseline does.

    Args:
        budget: `params` or `macs`.
        baseline: builds the model with QKV attention from an MLP ratio.
        variant: builds the variant from an MLP ratio.
        ratio: of the baseline.
        image: C, H, W, for `macs`.

    Returns:
        The variant's ratio; its cost is within 1 % of the baseline's.

    Raises:
        ConfigError: no ratio gets there.
    """

    def price(make: Callable[[float], SegmentationModel], at: float) -> int:
        with torch.device("meta"):
            model = make(at)
        if budget == "params":
            return cost.parameters(model)["total"]
        return cost.macs(model, image)

    wanted = price(baseline, ratio)
    low, high = 0.1, LARGEST_RATIO
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if price(variant, middle) < wanted else (low, middle)
    found = round(high, 3)
    if abs(price(variant, found) / wanted - 1) > TOLERANCE:
        raise ConfigError(f"model.match: no MLP ratio gives this variant the {budget} of qkv")
    return found
