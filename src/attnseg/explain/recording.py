"""Records the queries, keys, values and outputs of every attention while a model sees an image."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnseg.config.cost import find_attentions
from attnseg.models.model import SegmentationModel


@dataclass(frozen=True)
class AttentionRecord:
    """One attention of a model with its tensors for one image.

    Shapes: h heads of width d, N query tokens, M key tokens.

    Attributes:
        name: name of the module in the model.
        mix: the mixing, called as `mix(q, k, v)`.
        q: queries `[1, h, N, d]`: prefix tokens, then the grid in row-major order.
        k: keys `[1, h, M, d]`, in the same order.
        v: values `[1, h, M, d]`.
        out: output of the mixing, `[1, h, N, d]`.
        grid: height and width of the grid of query tokens.
        stride: a key stands at every stride-th query, along both axes.
    """

    name: str
    mix: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    grid: tuple[int, int]
    stride: int

    @property
    def prefix(self) -> int:
        """Number of tokens before the grid, such as class tokens."""
        return self.q.shape[2] - self.grid[0] * self.grid[1]

    @property
    def key_grid(self) -> tuple[int, int]:
        """Height and width of the grid of key tokens."""
        return -(-self.grid[0] // self.stride), -(-self.grid[1] // self.stride)

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
        step, grid = (self.stride, self.key_grid) if of_keys else (1, self.grid)
        rows, columns = (
            (torch.arange(count) * step + 0.5) * size
            for count, size in zip(grid, cell, strict=True)
        )
        return torch.cartesian_prod(rows, columns)


@torch.no_grad()
def record_attentions(model: SegmentationModel, image: Tensor) -> dict[str, AttentionRecord]:
    """Run a model on an image `[1, C, H, W]` and return its attentions by name, in order.

    The model, in evaluation mode, is left unchanged.
    """
    records: dict[str, AttentionRecord] = {}
    grids: dict[str, tuple[int, int]] = {}
    handles = []

    def note_grid(name: str, layer: object, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        grids[name] = args[1] if len(args) > 1 else named["grid"]

    def note_tensors(name: str, mix: nn.Module, qkv: tuple[Tensor, ...], out: Tensor) -> None:
        q, k, v = qkv
        stride = _key_stride(q, k, grids[name])
        records[name] = AttentionRecord(name, mix, q, k, v, out, grids[name], stride)

    attentions = find_attentions(model)
    for name, attention in attentions.items():
        note = partial(note_grid, name)
        handles.append(attention.register_forward_pre_hook(note, with_kwargs=True))
        handles.append(attention.mix.register_forward_hook(partial(note_tensors, name)))
        attention.absorbs = False  # Otherwise the mixing may fold other layers into the values.
    try:
        model(image)
    finally:
        for attention in attentions.values():
            del attention.absorbs
        for handle in handles:
            handle.remove()
    return records


def _key_stride(q: Tensor, k: Tensor, grid: tuple[int, int]) -> int:
    """Return the stride between keys that explains their number."""
    grid_keys = k.shape[2] - (q.shape[2] - grid[0] * grid[1])
    strides = range(1, max(grid) + 1)
    return next(s for s in strides if -(-grid[0] // s) * -(-grid[1] // s) == grid_keys)
