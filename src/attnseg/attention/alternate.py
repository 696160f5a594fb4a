"""Two attentions in turn, such as one over space and one over channels in every other block.

DaViT, Ding et al., 2022, arXiv 2204.03645 (spatial windows, then channel groups); with local and
global attention, Twins, Chu et al., 2021, arXiv 2104.13840.
"""

from collections.abc import Callable

from torch import nn

from attnseg.layers.tokens import DEFAULT_PLACE, AttentionFactory, Place


def alternate_attentions(
    dim: int,
    num_heads: int,
    bias: bool = True,
    scale: float | None = None,
    projection: Callable[[int, bool], nn.Module] | None = None,
    place: Place = DEFAULT_PLACE,
    *,
    first: AttentionFactory,
    second: AttentionFactory,
) -> nn.Module:
    """Build the first attention in blocks of even number, the second in those of odd number.

    Blocks are numbered from 0 through the whole model. The other arguments are those of
    `TokenMixer`.
    """
    chosen = second if place.block % 2 else first
    return chosen(dim, num_heads, bias, scale, projection, place)
