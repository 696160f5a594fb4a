"""The models and attentions from Python, by the names and defaults of the configuration files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from attnseg.config.build import ATTENTION, build, factory
from attnseg.config.errors import nearest
from attnseg.config.folder import configs_folder
from attnseg.config.nodes import Component
from attnseg.errors import ConfigError
from attnseg.models.model import SegmentationModel
from attnseg.models.pretrained import load_file_into


def list_models() -> list[str]:
    """Return the names that `create_model` takes."""
    return _names("model")


def list_attentions() -> list[str]:
    """Return the names that `create_attention` takes."""
    return _names("attn")


def create_attention(name: str, dim: int, num_heads: int, **options: Any) -> nn.Module:  # noqa: ANN401
    """Build an attention.

    Args:
        name: one of `list_attentions()`.
        dim: width of the tokens.
        num_heads: attention heads.
        options: any option of `configs/attn/<name>.yaml`, or of the class.

    Returns:
        A module called as `attention(x[B, N, C], grid=(H, W))`, which returns `[B, N, C]`.

    Raises:
        ConfigError: an unknown name or option, or numbers that do not fit.
    """
    given = {key: options.pop(key) for key in ("bias", "scale", "projection") if key in options}
    module: nn.Module = build(
        "attn", attention_component(name, **options), dim=dim, num_heads=num_heads, **given
    )
    return module


def create_model(
    name: str,
    attn: str | Callable[..., nn.Module] | None = None,
    in_channels: int = 1,
    num_classes: int = 1,
    image_size: tuple[int, int] = (224, 224),
    pretrained: str | Path | None = None,
    **options: Any,  # noqa: ANN401
) -> SegmentationModel:
    """Build a segmentation model.

    Args:
        name: one of `list_models()`.
        attn: one of `list_attentions()`, or a factory that takes what `create_attention` takes;
            `None` is the model's published attention.
        in_channels: channels of the image.
        num_classes: channels of the logits.
        image_size: height and width that learned positions are for; other sizes are interpolated.
        pretrained: file of published weights to start from.
        options: any option of `configs/model/<name>.yaml`.

    Returns:
        A module that maps images `[B, in_channels, H, W]` to logits `[B, num_classes, H, W]`.

    Raises:
        ConfigError: an unknown name or option, or numbers that do not fit.
        CheckpointError: `pretrained` cannot be loaded.
    """
    node = _load("model", name)
    for default in node.pop("defaults"):
        for key, value in default.items() if isinstance(default, dict) else ():
            if key.startswith("override /attn@"):
                attn = attn or value
            elif key.startswith("/attn@"):  # a second attention of the model's own
                node[key.removeprefix("/attn@")] = _load("attn", value)
    for engine_option in ("pretrained", "match"):
        node.pop(engine_option)
    component = Component.model_validate({**node, **options})
    make = attn if callable(attn) else factory("attn", attention_component(str(attn)), ATTENTION)
    model: SegmentationModel = build(
        "model",
        component,
        in_channels=in_channels,
        num_classes=num_classes,
        image_size=image_size,
        attn=make,
    )
    if pretrained is not None:
        print(load_file_into(model, pretrained))
    return model


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (configs_folder() / group).glob("[!_]*.yaml"))


def _load(group: str, name: str) -> dict[str, Any]:
    if name not in _names(group):
        raise ConfigError(f"{group}: no {name!r}; {nearest(name, _names(group))}")
    loaded: Any = OmegaConf.to_container(OmegaConf.load(configs_folder() / group / f"{name}.yaml"))
    return dict(loaded)


def attention_component(name: str, **options: Any) -> Component:  # noqa: ANN401
    """Return the component of a named attention, with options changed.

    Raises:
        ConfigError: there is none of that name.
    """
    return Component.model_validate({**_load("attn", name), **options})
