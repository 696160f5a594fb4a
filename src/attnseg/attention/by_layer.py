"""Two attentions in one network, divided by a list of blocks, such as a conversion of some layers.

The list is free, as in a network that was partly converted (`attnseg convert layers=...`);
`attnseg.attention.alternate` divides blocks by parity.
"""

from collections.abc import Callable

from torch import nn

from attnseg.layers.tokens import DEFAULT_PLACE, AttentionFactory, Place


def choose_by_layer(
    dim: int,
    num_heads: int,
    bias: bool = True,
    scale: float | None = None,
    projection: Callable[[int, bool], nn.Module] | None = None,
    place: Place = DEFAULT_PLACE,
    *,
    default: AttentionFactory,
    other: AttentionFactory,
    layers: list[int],
) -> nn.Module:
    """Build the other attention in the listed blocks, and the default in the rest.

    Blocks are numbered from 0 through the whole model; a number that the model does not have is
    refused when a configuration is built. The other arguments are those of `TokenMixer`.
    """
    chosen = other if place.block in layers else default
    return chosen(dim, num_heads, bias, scale, projection, place)
