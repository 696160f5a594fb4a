"""The start of a conversion: the parent is opened, and its weights are carried over."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attnseg.attention.attention import Attention
from attnseg.config.cost import find_attentions
from attnseg.config.training import Config
from attnseg.conversion.distillation import Distiller
from attnseg.conversion.moments import measure_moments
from attnseg.conversion.surgery import SiteReport, convert_model, find_sources
from attnseg.data.slicing import network_input
from attnseg.data.store import StoredCase
from attnseg.errors import ConfigError, DataError
from attnseg.models.model import SegmentationModel
from attnseg.preparation.datasets import PreparedData, slice_view
from attnseg.runs.run_folder import RunFolder

SLICES, BATCH = 64, 8  # training slices whose tokens are measured, evenly over all, and at a time


@dataclass(frozen=True)
class OpenConversion:
    """A conversion before its first step.

    Attributes:
        parent: run folder of the trained network.
        teacher: that network, in evaluation mode.
        sites: what became of each attention, by its name.
        distiller: compares the new network with it in training.
    """

    parent: RunFolder
    teacher: SegmentationModel
    sites: dict[str, SiteReport]
    distiller: Distiller


def open_conversion(
    config: Config, model: SegmentationModel, data: PreparedData
) -> OpenConversion | None:
    """Give a model the weights of the parent that `conversion` names; `None` if there is none.

    Raises:
        ConfigError: the parent is no finished run, or of another network.
        DataError: the parent was trained on other data or patients.
        CheckpointError: the parent's weights are missing or damaged.
    """
    options = config.conversion
    if options is None:
        return None
    parent = RunFolder(options.parent)
    teacher = parent.model()
    if (parent.facts.data_digest, parent.facts.split_digest) != (data.digest, data.split_digest):
        raise DataError(
            f"conversion.parent: {parent} was trained on other cases, or with another split; "
            "restore the data as they were"
        )
    solves = options.surgery == "solve" and _ties(model, teacher)
    moments = measure_moments(teacher, draw_batches(config, data.train)) if solves else {}
    try:
        sites = convert_model(model, teacher, options.surgery, moments)
    except ValueError as error:
        raise ConfigError(f"conversion.surgery: {error}") from error
    distiller = Distiller(model, teacher, options, data.reader.labels.overlapping)
    return OpenConversion(parent, teacher, sites, distiller)


def _ties(model: SegmentationModel, teacher: SegmentationModel) -> bool:
    """Return whether any attention of the model shares a projection that were several before."""
    before = find_attentions(teacher)
    return any(
        len(sources) > 1
        for name, new in find_attentions(model).items()
        if isinstance(new, Attention) and isinstance(old := before.get(name), Attention)
        for sources in find_sources(new, old).values()
    )


def draw_batches(config: Config, cases: Sequence[StoredCase]) -> Iterator[Tensor]:
    """Yield training slices as the network sees them, evenly over all cases: `[B, C, H, W]`."""
    view = slice_view(config)
    places = [(case, index) for case in cases for index in range(case.shape[0])]
    chosen = np.linspace(0, len(places) - 1, min(SLICES, len(places))).round().astype(int)
    for start in range(0, len(chosen), BATCH):
        images = [network_input(view.image(*places[at])) for at in chosen[start : start + BATCH]]
        yield torch.from_numpy(np.stack(images))
