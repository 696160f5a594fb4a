"""The attention of one run for one token: records and weights of the chosen layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attnseg.data.slicing import network_input
from attnseg.data.store import StoredCase
from attnseg.errors import ConfigError
from attnseg.evaluation.evaluate import FinishedRun
from attnseg.explain.jacobian import derive_weights
from attnseg.explain.recording import AnyRecord, record_attentions
from attnseg.explain.selection import choose_layers
from attnseg.explain.token_weights import TokenWeights
from attnseg.preparation.datasets import slice_view


@dataclass(frozen=True)
class RunAttention:
    """The chosen attention layers of a run, by name: tensors, and weights of the chosen token."""

    run: FinishedRun
    records: dict[str, AnyRecord]
    weights: dict[str, TokenWeights]

    @property
    def label(self) -> str:
        """Model, attention and id of the run, for titles."""
        choices = self.run.config.choices
        return f"{choices['model']}, {choices['attn']}\n{self.run.folder.name}"


def record_run(
    run: FinishedRun, case: StoredCase, index: int, point: tuple[int, int], layers: Sequence[str]
) -> RunAttention:
    """Run a model on the slice `index` of a case and derive the weights of one pixel's token.

    Layers are chosen by name or pattern; all are if none is named.
    """
    image = torch.from_numpy(network_input(slice_view(run.config).image(case, index)))[None]
    records = record_attentions(run.model, image.to(next(run.model.parameters()).device))
    if not records:
        raise ConfigError(
            f"run: {run.folder} is of a model without attention; give a run of another model"
        )
    size = (case.shape[1], case.shape[2])
    chosen = choose_layers(list(records), layers, str(run.folder))
    records = {name: records[name] for name in chosen}
    weights = {
        name: derive_weights(record, record.token_at(point, size))
        for name, record in records.items()
    }
    return RunAttention(run, records, weights)
