"""Builds models; with `model.match`, a cheaper attention gets wider MLPs at equal total cost."""

import inspect
import logging
from collections.abc import Callable
from functools import partial

import torch

from attnseg.config import cost
from attnseg.config.build import ATTENTION, build, factory, locate
from attnseg.config.nodes import Component
from attnseg.config.training import Model
from attnseg.errors import ConfigError
from attnseg.layers.tokens import AttentionFactory
from attnseg.models.model import SegmentationModel

log = logging.getLogger(__name__)

# The baseline of every budget, by the defaults of the class: softmax and three projections.
QKV = Component.model_validate({"_target_": "attnseg.attention.attention.Attention"})
BY_LAYER = "attnseg.attention.by_layer.choose_by_layer"
BUDGET_TOLERANCE = 0.01  # share of the budget
LARGEST_RATIO = 64.0


def build_model(
    model: Model,
    attn: Component | AttentionFactory | None,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
) -> SegmentationModel:
    """Build a model with an attention, with wider MLPs if `model.match` asks for equal cost.

    The attention is one of a configuration, any other factory, or `None` for a model without.
    `image_size` is height and width in pixels. A `ConfigError` names an option that is wrong.
    """
    matched = match_budget(model, attn, in_channels, num_classes, image_size)
    return _make_model(matched, attn, in_channels, num_classes, image_size)


def match_budget(
    model: Model,
    attn: Component | AttentionFactory | None,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
) -> Model:
    """Return the model without `match`, but with the MLP ratio that it asks for.

    Arguments as in `build_model`.
    """
    attends = _check_attention(model, attn)
    if model.match is None:
        return model
    if not attends or model.mlp_ratio is None:
        raise ConfigError(
            f"model.match: {model.target.rpartition('.')[2]} has no attention or no mlp_ratio; "
            "use model.match=null"
        )

    def make(attn: Component | AttentionFactory | None, ratio: float) -> SegmentationModel:
        changed = model.model_copy(update={"mlp_ratio": ratio})
        return _make_model(changed, attn, in_channels, num_classes, image_size)

    image = (in_channels, *image_size)
    ratio = find_mlp_ratio(
        model.match, partial(make, QKV), partial(make, attn), model.mlp_ratio, image
    )
    log.info("MLP ratio %g spends the %s of QKV", ratio, model.match)
    return model.model_copy(update={"mlp_ratio": ratio, "match": None})


def _check_attention(model: Model, attn: Component | AttentionFactory | None) -> bool:
    """Refuse an attention that the model does not take; return whether it takes one."""
    class_name = model.target.rpartition(".")[2]
    parameters = inspect.signature(locate("model", model.target)).parameters
    attends = "attn" in parameters
    if model.tokens is not None and "tokens" not in parameters:
        raise ConfigError(
            f"tokens: {class_name} needs the grid of its tokens within the encoder; use tokens=none"
        )
    if attends and attn is None:
        raise ConfigError(f"attn: {class_name} needs an attention; choose one, such as attn=qkv")
    if not attends and attn is not None:
        raise ConfigError(f"attn: {class_name} has no attention; use attn=none")
    if isinstance(attn, Component):
        build("attn", attn, dim=8, num_heads=1)  # An error in the attention is named as its own.
    return attends


def _make_model(
    model: Model,
    attn: Component | AttentionFactory | None,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
) -> SegmentationModel:
    layers: list[int] = []
    if isinstance(attn, Component):
        layers = attn.options.get("layers", []) if attn.target == BY_LAYER else []
        attn = factory("attn", attn, ATTENTION)
    built: SegmentationModel = build(
        "model",
        model,
        in_channels=in_channels,
        num_classes=num_classes,
        image_size=image_size,
        **({} if attn is None else {"attn": attn}),
    )
    blocks = {mixer.place.block for mixer in cost.find_attentions(built).values()}
    for layer in layers:
        if layer not in blocks:
            raise ConfigError(
                f"attn.layers: the model has no block {layer}; give numbers of 0 to {max(blocks)}"
            )
    return built


def find_mlp_ratio(
    budget: str,
    make_baseline: Callable[[float], SegmentationModel],
    make_variant: Callable[[float], SegmentationModel],
    baseline_ratio: float,
    image: tuple[int, int, int],
) -> float:
    """Return the MLP ratio at which a variant costs what the baseline does, within 1 %.

    Args:
        budget: `params` or `macs`.
        make_baseline: builds the model with QKV attention from an MLP ratio.
        make_variant: builds the variant from an MLP ratio.
        baseline_ratio: MLP ratio of the baseline.
        image: C, H, W of the image, for `macs`.
    """

    def cost_at(make: Callable[[float], SegmentationModel], ratio: float) -> int:
        with torch.device("meta"):
            model = make(ratio)
        if budget == "params":
            return cost.count_parameters(model)["total"]
        return cost.count_macs(model, image)

    wanted = cost_at(make_baseline, baseline_ratio)
    low, high = 0.1, LARGEST_RATIO
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if cost_at(make_variant, middle) < wanted else (low, middle)
    ratio = round(high, 3)
    if abs(cost_at(make_variant, ratio) / wanted - 1) > BUDGET_TOLERANCE:
        raise ConfigError(f"model.match: no MLP ratio gives this variant the {budget} of qkv")
    return ratio
