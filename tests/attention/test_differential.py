"""Differential attention against its definition, token by token."""

import math

import pytest
import torch

from attnseg.attention.attention import SHARINGS, Attention
from attnseg.attention.differential import Differential
from attnseg.layers.tokens import Place

C, H, BLOCK = 12, 2, 3


def by_definition(attention, x):
    """What an attention makes of tokens `[N, C]`, with plain loops over heads, queries and keys."""
    q, k, v = (attention.project[attention.reads[role]].linear(x) for role in "qkv")
    mix, width = attention.mix, C // H
    (a1, a2), (b1, b2) = mix.exponents
    initial = 0.8 - 0.6 * math.exp(-0.3 * BLOCK)
    factor = math.exp(sum(a1 * b1)) - math.exp(sum(a2 * b2)) + initial
    out = torch.zeros_like(x)
    for start in range(0, C, width):
        half = width // 2
        spans = (slice(start, start + half), slice(start + half, start + width))
        for i in range(len(x)):
            shares = [
                torch.stack([(q[i, s] @ k[j, s] / half**0.5).exp() for j in range(len(x))])
                for s in spans
            ]
            weights = shares[0] / shares[0].sum() - factor * shares[1] / shares[1].sum()
            mixed = sum(weights[j] * v[j, start : start + width] for j in range(len(x)))
            normed = mixed / (mixed.square().mean() + 1e-5).sqrt() * mix.norm.weight
            out[i, start : start + width] = (1 - initial) * normed
    return attention.out(out)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_equals_the_definition_token_by_token(sharing):
    torch.manual_seed(0)
    place = Place(block=BLOCK)
    attention = Attention(C, H, place=place, sharing=sharing, mixing="differential").double()
    torch.nn.init.normal_(attention.mix.norm.weight)
    x = torch.randn(1, 6, C, dtype=torch.double)
    with torch.no_grad():
        wanted = by_definition(attention, x[0])
        assert (attention(x, (2, 3))[0] - wanted).abs().max() < 1e-12


def test_later_blocks_subtract_more_at_first():
    starts = [Differential(4, 2, 1.0, Place(block=block)).initial for block in range(3)]
    assert starts == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8 - 0.6 * math.exp(-0.6)])


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="halves the width 3 of a head, which is odd; use another"):
        Attention(6, 2, mixing="differential")
