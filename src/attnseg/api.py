"""The Python interface: commands, models and attentions by the names of the command line.

Every function raises an `AttnsegError` if an option is wrong, or if the data, the machine or a file
is at fault; `ConfigError` and the like are classes of it.
"""

import json
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from attnseg import plugins
from attnseg.cli.hydra_app import compose_raw, to_hydra
from attnseg.cli.literal_text import quote_text
from attnseg.commands import compare as compare_command
from attnseg.commands import evaluate as evaluate_command
from attnseg.commands import predict as predict_command
from attnseg.commands import train as train_command
from attnseg.commands.command import Command
from attnseg.config.budget import build_model
from attnseg.config.build import build
from attnseg.config.components import attention_component, model_nodes
from attnseg.config.folder import list_attentions as list_attention_choices
from attnseg.config.folder import list_choices
from attnseg.models.model import SegmentationModel
from attnseg.models.pretrained import load_file_into
from attnseg.runs.predictors import predict_as_configured
from attnseg.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd


def train(**options: Any) -> RunFolder:  # noqa: ANN401
    """Train a model and return its run folder, as `attnseg train` does.

    Args:
        options: named as on the command line, parts as dictionaries:
            `train(model="setr", attn="kv", trainer={"max_epochs": 1})`.
    """
    from attnseg.training.train import train as train_as_configured

    return RunFolder(train_as_configured(parse_keywords(train_command.COMMAND, options)))


def evaluate(**options: Any) -> "pd.DataFrame":  # noqa: ANN401
    """Score a finished run or a folder of masks, as `attnseg evaluate` does.

    Returns:
        A row per case, class, metric and profile.
    """
    from attnseg.evaluation.evaluate import evaluate as evaluate_as_configured

    return evaluate_as_configured(parse_keywords(evaluate_command.COMMAND, options))


def predict(**options: Any) -> Path:  # noqa: ANN401
    """Segment images as `attnseg predict` does, and return the folder of the masks."""
    parsed = parse_keywords(predict_command.COMMAND, options)
    predict_as_configured(parsed)
    return Path(parsed.output)


def compare(**options: Any) -> object:  # noqa: ANN401
    """Compare finished runs as `attnseg compare` does, and return the comparison."""
    return compare_command.run(parse_keywords(compare_command.COMMAND, options))


def load_run(folder: str | PathLike[str]) -> RunFolder:
    """Open a run folder: its facts, configuration, history, scores and model."""
    return RunFolder(folder)


def parse_keywords(command: Command, options: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return a command's options, composed and checked as on the command line.

    `plugins=["my_idea.py"]` adds a file to this process.
    """
    files, overrides = plugins.split_arguments(to_hydra(command, to_overrides(options)))
    plugins.add_files(files)
    return command.parse(compose_raw(command, overrides))


def to_overrides(options: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return options as `KEY=VALUE`; the keys of a dictionary are joined by dots."""
    overrides = []
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            overrides += to_overrides(value, f"{prefix}{key}.")
        else:
            overrides.append(f"{prefix}{key}={_to_text(value)}")
    return overrides


def _to_text(value: object) -> str:
    if isinstance(value, str | PathLike):
        text = fspath(value)
        plain = text.isascii() and text.replace("_", "").isalnum()
        return text if plain else quote_text(text)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_to_text, value))}]"
    return json.dumps(value)


def list_models() -> list[str]:
    """Return the names that `create_model` takes."""
    return list_choices("model")


def list_attentions() -> list[str]:
    """Return the names that `create_attention` takes."""
    return list_attention_choices()


def create_attention(name: str, dim: int, num_heads: int, **options: Any) -> nn.Module:  # noqa: ANN401
    """Build an attention.

    Args:
        name: one of `list_attentions()`.
        dim: width of the tokens.
        num_heads: attention heads.
        options: any option of `configs/attn/<name>.yaml`, or of the class.

    Returns:
        A module called as `attention(x[B, N, C], grid=(H, W))`, which returns `[B, N, C]`.
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
    image_size: int | tuple[int, int] = (224, 224),
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
        image_size: height and width that learned positions are for, or one number for both; other
            sizes are interpolated.
        pretrained: file of published weights to start from.
        options: any option of `configs/model/<name>.yaml`; `tokens`, a choice of `configs/tokens`.

    Returns:
        A module that maps images `[B, in_channels, H, W]` to logits `[B, num_classes, H, W]`.
    """
    model_node, attn_node = model_nodes(name, attn if isinstance(attn, str) else None, **options)
    model = build_model(
        model_node,
        attn if callable(attn) else attn_node,
        in_channels,
        num_classes,
        (image_size, image_size) if isinstance(image_size, int) else image_size,
    )
    if pretrained is not None:
        print(load_file_into(model, pretrained))
    return model
