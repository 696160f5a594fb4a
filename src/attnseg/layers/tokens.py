"""The base of all modules that mix tokens, and their places in a model."""

import copy
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attnseg.layers.sight import Sees

Grid = tuple[int, int]  # height and width, in tokens


class Place(NamedTuple):
    """A place in a model, which tells one block from another.

    Attributes:
        stage: level of resolution, from 0 for the finest; a plain transformer has only 0.
        block: number of the block, from 0, counted through the whole model.
        grid: the grid of tokens at the image size that the model is built for; images of another
            size have another one.
    """

    stage: int = 0
    block: int = 0
    grid: Grid = (14, 14)


DEFAULT_PLACE = Place()


class TokenMixer(nn.Module):
    """Mixes tokens within a block: the base of every attention and of what replaces one.

    Args:
        dim: C, the width of the tokens.
        num_heads: number of heads; mixers without heads ignore it, and likewise `bias` and `scale`.
        bias: whether the projections of the tokens have a bias.
        scale: factor of the scores; `None` is the mixer's own.
        projection: makes a projection from `dim` and `bias`; `None` is a linear one.
        place: where in the model the mixer stands.

    Attributes:
        mixes_prefix: whether the tokens of the grid take from prefix tokens, such as a class token.
        needs_grid: whether the result depends on where tokens lie on the grid, beyond their order.
        sees: whether it should solve a probe, by the probe's name; see `layers/sight.py`.
    """

    mixes_prefix = True
    needs_grid = True
    sees: ClassVar[Sees] = {}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: bool = True,
        scale: float | None = None,
        projection: Callable[[int, bool], nn.Module] | None = None,
        place: Place = DEFAULT_PLACE,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.place = place

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        context: Tensor | None = None,
        context_grid: Grid | None = None,
    ) -> Tensor:
        """Mix the tokens of `x`, or let them take from those of a context.

        Args:
            x: tokens `[B, N, C]`; any prefix tokens first, then the grid in row-major order.
            grid: height and width of the grid of tokens.
            context: tokens `[B, M, C]`, in the same order; `None` is `x` itself.
            context_grid: height and width of the grid of the context; `None` is one row.

        Returns:
            Mixed tokens `[B, N, C]`.

        Raises:
            ValueError: the mixer takes no context.
        """
        raise NotImplementedError

    def predict_sight(self) -> Sees:
        """Return whether the mixer should solve a probe, by the probe's name."""
        return self.sees

    def diagnostics(self) -> dict[str, Tensor]:
        """Return learned scalars worth watching, by name; every epoch of a run records them."""
        return {}

    def findings(self) -> list[str]:
        """Return what is remarkable about the diagnostics, a phrase each that follows "is"."""
        return []

    def macs(
        self, tokens: int, grid: Grid, context: int | None = None, context_grid: Grid | None = None
    ) -> int:
        """Return the multiply-accumulates of `forward` for one item, in closed form.

        Only matrix products and convolutions count, as in PyTorch's FLOP counter.

        Args:
            tokens: N, prefix tokens included.
            grid: height and width of the grid of tokens.
            context: M, prefix tokens included; `None` without a context.
            context_grid: height and width of the grid of the context.
        """
        raise NotImplementedError


@runtime_checkable
class AttentionFactory(Protocol):
    """Callable that builds one `TokenMixer`; a model passes these options and no others."""

    def __call__(
        self,
        dim: int,
        num_heads: int,
        bias: bool = True,
        scale: float | None = None,
        projection: Callable[[int, bool], nn.Module] | None = None,
        place: Place = DEFAULT_PLACE,
    ) -> nn.Module:
        """Return a mixer of width `dim`; arguments as in `TokenMixer`."""
        ...


def check_context(site: str, mixer: nn.Module, dim: int, queries: Grid, keys: Grid) -> None:
    """Refuse a mixer that takes no context by a `ValueError` that names its site in the model.

    Args:
        site: name of the constructor argument that built the mixer.
        mixer: the mixer, which is called once without data.
        dim: width of the tokens.
        queries: grid of the tokens; (0, 0) is one token without a grid.
        keys: grid of the context.
    """
    x, context = (
        torch.zeros(1, max(1, height * width), dim, device="meta")
        for height, width in (queries, keys)
    )
    try:
        copy.deepcopy(mixer).to("meta")(x, queries, context, keys)
    except ValueError as error:
        raise ValueError(f"{site}: {error}; use one that takes a context, such as qkv") from error
