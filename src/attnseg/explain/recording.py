"""Records the tensors of every attention, and of what replaces one, while a model sees an image."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnseg.attention.attention import Attention
from attnseg.attention.mixing import Layout, Mixing
from attnseg.config.cost import bind_tokens, find_attentions
from attnseg.layers.tokens import Grid, TokenMixer
from attnseg.models.model import SegmentationModel


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """One mixer of tokens in a model, and where its tokens lie in the image.

    Attributes:
        name: name of the module in the model.
        layout: where queries and keys lie; without attention, output and input tokens.
        source: the grid whose tokens became keys: that of the queries, or of a context.
    """

    name: str
    layout: Layout
    source: Grid

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
    def heads(self) -> int:
        """Number of maps: 1 without heads."""
        return 1

    def token_at(self, point: tuple[int, int], shape: tuple[int, int]) -> int:
        """Return the index of the query token that contains a pixel, prefix tokens included.

        The point is the pixel's row and column, from 0, in a slice of `shape` `[H, W]`. Where there
        is no grid of queries, it is the first token.
        """
        if 0 in self.grid:
            return 0
        row, column = (
            int((at + 0.5) * tokens / pixels)
            for at, tokens, pixels in zip(point, self.grid, shape, strict=True)
        )
        return self.prefix + row * self.grid[1] + column

    def query_centres(self, size: tuple[float, float]) -> Tensor:
        """Return the centres of the grid's query tokens, `[tokens, 2]`.

        The size is the height and width of the slice, in any unit.
        """
        return Layout(self.grid, self.grid).key_centres() * _divide(size, self.grid)

    def key_centres(self, size: tuple[float, float]) -> Tensor:
        """Return the centres of the grid's key tokens, `[g, tokens, 2]` for g groups of heads.

        The size is as in `query_centres`. A context covers the whole slice, on whatever grid.
        """
        centres = self.layout.key_centres()
        own = centres[None] if self.layout.positions is None else centres[0].float().cpu()
        return own * _divide(size, self.source)


@dataclass(frozen=True, kw_only=True)
class AttentionRecord(TokenRecord):
    """An attention with its tensors for one image.

    Shapes: h heads of width d, N query tokens, M key tokens.

    Attributes:
        mix: the mixing, called as `mix(q, k, v, layout)`.
        q: queries `[1, h, N, d]`: prefix tokens, then the grid in row-major order.
        k: keys `[1, h, M, d]`, in the same order.
        v: values `[1, h, M, d]`.
        out: output of the mixing, `[1, h, N, d]`.
    """

    mix: Mixing
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor

    @property
    def heads(self) -> int:
        """Number of heads, h."""
        return self.q.shape[1]

    @property
    def same_tokens(self) -> bool:
        """Whether queries and keys are the same tokens."""
        layout = self.layout
        queries, keys = (layout.queries, layout.query_prefix), (layout.keys, layout.key_prefix)
        return queries == keys and self.source == self.grid and layout.positions is None

    def mix_values(self, q: Tensor, v: Tensor) -> Tensor:
        """Mix other values `[1, h, M, d]`, for other queries, as the attention did."""
        mixed: Tensor = self.mix(q, self.k, v, self.layout)
        return mixed


@dataclass(frozen=True, kw_only=True)
class MixerRecord(TokenRecord):
    """A mixer without queries, keys and values, with its tokens for one image.

    Attributes:
        mixer: the module.
        x: tokens `[1, N, C]`: prefix tokens, then the grid in row-major order.
        context: tokens of a context, `[1, M, C]`, or `None`.
    """

    mixer: TokenMixer
    x: Tensor
    context: Tensor | None

    @property
    def tokens(self) -> Tensor:
        """The tokens that the mixer takes from: the context, or else `x`."""
        return self.x if self.context is None else self.context

    def mix_tokens(self, mixer: TokenMixer, tokens: Tensor) -> Tensor:
        """Call a mixer with other tokens `[B, M, C]` in the place of `self.tokens`."""
        mixed: Tensor
        if self.context is None:
            mixed = mixer(tokens, self.grid)
        else:
            x = self.x.to(tokens).expand(len(tokens), -1, -1)
            mixed = mixer(x, self.grid, tokens, self.source)
        return mixed


AnyRecord = AttentionRecord | MixerRecord


def recorded_part(record: AnyRecord) -> Mixing | TokenMixer:
    """Return the module that mixed: the mixing of an attention, or the mixer in its place."""
    return record.mix if isinstance(record, AttentionRecord) else record.mixer


@torch.no_grad()
def record_attentions(model: SegmentationModel, image: Tensor) -> dict[str, AnyRecord]:
    """Run a model on an image `[1, C, H, W]` and return its attentions by name, in order.

    Of a mixer that takes the place of an attention, there is a `MixerRecord`. The model, in
    evaluation mode, is left unchanged.
    """
    records: dict[str, AnyRecord] = {}
    mixed: dict[str, tuple[Any, ...]] = {}
    mixers, handles = find_attentions(model), []

    def note_mixing(name: str, mix: Mixing, inputs: tuple[Any, ...], out: Tensor) -> None:
        mixed[name] = (*inputs, out)

    def note(
        name: str, mixer: TokenMixer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        x, grid, context, context_grid = bind_tokens(mixer, args, kwargs)
        source = grid if context is None else context_grid or (1, context.shape[1])
        if isinstance(mixer, Attention):
            q, k, v, layout, out = mixed[name]
            records[name] = AttentionRecord(
                name=name, layout=layout, source=source, mix=mixer.mix, q=q, k=k, v=v, out=out
            )
            return
        keys = x if context is None else context
        prefix, key_prefix = x.shape[1] - grid[0] * grid[1], keys.shape[1] - source[0] * source[1]
        layout = Layout(grid, source, prefix, key_prefix)
        records[name] = MixerRecord(
            name=name, layout=layout, source=source, mixer=mixer, x=x, context=context
        )

    attentions = {name: mixer for name, mixer in mixers.items() if isinstance(mixer, Attention)}
    for name, mixer in mixers.items():
        handles.append(mixer.register_forward_hook(partial(note, name), with_kwargs=True))
    for name, attention in attentions.items():
        handles.append(attention.mix.register_forward_hook(partial(note_mixing, name)))
        attention.absorbs = False  # Otherwise the mixing may fold other layers into the values.
    try:
        model(image)
    finally:
        for attention in attentions.values():
            del attention.absorbs
        for handle in handles:
            handle.remove()
    return records


def _divide(size: tuple[float, float], grid: Grid) -> Tensor:
    """Return height and width of a token; those of the slice where there is no grid."""
    return torch.tensor(
        [length / max(tokens, 1) for length, tokens in zip(size, grid, strict=True)]
    )
