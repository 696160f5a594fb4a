"""The loop over the blocks of a plain encoder, in which tokens may be reduced and restored."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attnseg.layers.matching import copy_tokens
from attnseg.layers.tokens import Grid


class Reduced(NamedTuple):
    """Fewer tokens, and the way back.

    Attributes:
        tokens: the m tokens that go on through the blocks, `[B, m, C]`.
        sizes: how many tokens of the grid each of them stands for, `[B, m]`.
        dropped: tokens that stay as they are until the end, `[B, k, C]`.
        targets: for each of the n tokens before, the number of the token that holds its value
            later, counted through `tokens` and then `dropped`: `[B, n]`.
    """

    tokens: Tensor
    sizes: Tensor
    dropped: Tensor
    targets: Tensor


class TokenReduction(nn.Module):
    """Leaves fewer tokens to the blocks that follow: the base of all choices of `tokens`.

    Args:
        dim: C, the width of the tokens.
        depth: number of blocks of the encoder.

    Attributes:
        EXAMPLE: arguments that a model passes to the constructor, with any valid values.
    """

    EXAMPLE: ClassVar[Mapping[str, Any]] = MappingProxyType({"dim": 8, "depth": 2})

    def forward(self, tokens: Tensor, sizes: Tensor, block: int) -> Reduced | None:
        """Reduce tokens.

        Args:
            tokens: tokens of the grid, without prefix tokens, `[B, n, C]`.
            sizes: how many tokens of the grid each of them stands for, `[B, n]`.
            block: number of the block that they come from, from 0; never the last one.

        Returns:
            `None` where all tokens go on.
        """
        raise NotImplementedError


@runtime_checkable
class ReductionFactory(Protocol):
    """Callable that builds a `TokenReduction`."""

    def __call__(self, dim: int, depth: int) -> TokenReduction:
        """Return a reduction; arguments as of `TokenReduction`."""
        ...


def make_reduction(
    factory: ReductionFactory | None, dim: int, blocks: nn.ModuleList
) -> TokenReduction | None:
    """Build the token reduction of an encoder; `None` where there is none.

    Raises:
        ValueError: a block's attention needs the grid, which reduced tokens do not form.
    """
    if factory is None:
        return None
    for block in blocks:
        attention = block.get_submodule("attn")
        if getattr(attention, "needs_grid", True):
            inner = getattr(attention, "gather", None) or getattr(attention, "mix", attention)
            raise ValueError(
                f"tokens that are merged or pruned form no grid, which {type(inner).__name__} "
                "needs; use tokens=none, or an attention without grid such as attn=qkv"
            )
    return factory(dim, len(blocks))


def run_blocks(
    blocks: nn.ModuleList,
    tokens: Tensor,
    grid: Grid,
    wanted: Collection[int],
    reduction: TokenReduction | None = None,
) -> list[Tensor]:
    """Pass tokens through all blocks and return the outputs of some, with every token in place.

    Reduced tokens are given to the blocks as one row, and copied to all places that they stand for
    in each output.

    Args:
        blocks: called with tokens and the height and width of their grid.
        tokens: `[B, N, C]`; any prefix tokens first, which are never reduced, then the grid.
        grid: height and width of the grid of tokens.
        wanted: numbers of the blocks whose outputs are returned, from 0.
        reduction: reduces the tokens between blocks.

    Returns:
        Tokens `[B, N, C]`, in the order of the blocks.
    """
    outputs: list[Tensor] = []
    steps: list[Reduced] = []
    places = grid[0] * grid[1]
    prefix = tokens.shape[1] - places
    for i, block in enumerate(blocks):
        tokens = block(tokens, (1, tokens.shape[1] - prefix) if steps else grid)
        if i in wanted:
            outputs.append(restore_tokens(tokens, prefix, steps) if steps else tokens)
        if reduction is None or i == len(blocks) - 1:
            continue
        sizes = steps[-1].sizes if steps else tokens.new_ones(tokens.shape[0], places)
        reduced = reduction(tokens[:, prefix:], sizes, i)
        if reduced is not None:
            steps.append(reduced)
            tokens = torch.cat((tokens[:, :prefix], reduced.tokens), 1)
    return outputs


def restore_tokens(tokens: Tensor, prefix: int, steps: list[Reduced]) -> Tensor:
    """Return all tokens `[B, N, C]` from those that are left after some steps of reduction."""
    patches = tokens[:, prefix:]
    for step in reversed(steps):
        patches = torch.cat((patches, step.dropped), 1)
        patches = copy_tokens(patches[:, None], step.targets)[:, 0]
    return torch.cat((tokens[:, :prefix], patches), 1)
