"""Records the queries, keys, values and outputs of every attention while a model sees an image."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnseg.attention.attention import Attention
from attnseg.attention.mixing import Layout, Mixing
from attnseg.config.cost import find_attentions
from attnseg.layers.tokens import Grid
from attnseg.models.model import SegmentationModel


@dataclass(frozen=True)
class AttentionRecord:
    """One attention of a model with its tensors for one image.

    Shapes: h heads of width d, N query tokens, M key tokens.

    Attributes:
        name: name of the module in the model.
        mix: the mixing, called as `mix(q, k, v, layout)`.
        q: queries `[1, h, N, d]`: prefix tokens, then the grid in row-major order.
        k: keys `[1, h, M, d]`, in the same order.
        v: values `[1, h, M, d]`.
        out: output of the mixing, `[1, h, N, d]`.
        layout: where queries and keys lie.
    """

    name: str
    mix: Mixing
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    layout: Layout

    @property
    def grid(self) -> Grid:
        """Height and width of the grid of query tokens."""
        return self.layout.queries

    @property
    def key_grid(self) -> Grid:
        """Height and width of the grid of key tokens."""
        return self.layout.keys

    @property
    def prefix(self) -> int:
        """Number of query tokens before the grid, such as class tokens."""
        return self.layout.query_prefix

    @property
    def same_tokens(self) -> bool:
        """Whether queries and keys stand on the same grid."""
        return self.layout.queries == self.layout.keys and self.layout.positions is None

    def mix_values(self, q: Tensor, v: Tensor) -> Tensor:
        """Mix other values `[1, h, M, d]`, for other queries, as the attention did."""
        mixed: Tensor = self.mix(q, self.k, v, self.layout)
        return mixed

    def token_at(self, point: tuple[int, int], shape: tuple[int, int]) -> int:
        """Return the index of the query token that contains a pixel, prefix tokens included.

        The point is the pixel's row and column, from 0, in a slice of `shape` `[H, W]`.
        """
        row, column = (
            int((at + 0.5) * tokens / pixels)
            for at, tokens, pixels in zip(point, self.grid, shape, strict=True)
        )
        return self.prefix + row * self.grid[1] + column

    def centres(self, cell: tuple[float, float], of_keys: bool) -> Tensor:
        """Return the centres of the grid's query or key tokens, `[tokens, 2]`.

        The cell is the height and width of a query token, in any unit.
        """
        own = Layout(self.grid, self.grid)
        centres = (self.layout if of_keys else own).key_centres().float()
        return centres * torch.tensor(cell)


@torch.no_grad()
def record_attentions(model: SegmentationModel, image: Tensor) -> dict[str, AttentionRecord]:
    """Run a model on an image `[1, C, H, W]` and return its attentions by name, in order.

    The model, in evaluation mode, is left unchanged.
    """
    records: dict[str, AttentionRecord] = {}
    handles = []

    def note(name: str, mix: Mixing, inputs: tuple[Any, ...], out: Tensor) -> None:
        q, k, v, layout = inputs
        records[name] = AttentionRecord(name, mix, q, k, v, out, layout)

    attentions = {n: a for n, a in find_attentions(model).items() if isinstance(a, Attention)}
    for name, attention in attentions.items():
        handles.append(attention.mix.register_forward_hook(partial(note, name)))
        attention.absorbs = False  # Otherwise the mixing may fold other layers into the values.
    try:
        model(image)
    finally:
        for attention in attentions.values():
            del attention.absorbs
        for handle in handles:
            handle.remove()
    return records
