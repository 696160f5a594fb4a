"""Sums over many tokens in float16, whose largest number is 65504."""

import pytest
import torch

from attnseg.attention.attention import Attention, list_parts
from attnseg.attention.mixing import Layout, Mixing

GRID = (48, 48)
LAYOUT = Layout(GRID, GRID)


@pytest.mark.parametrize("mixing", list_parts(Mixing))
def test_large_queries_keys_and_values_overflow_in_no_mixing(mixing):
    """All products are near 49, so that the plain sum over 2304 tokens is 112896."""
    torch.manual_seed(0)
    mix = Attention(16, 2, scale=0.01, mixing=mixing).mix.double()
    exact = 7 + 0.1 * torch.randn(3, 1, 2, GRID[0] * GRID[1], 8, dtype=torch.double)
    q, k, v = exact.half()
    with torch.no_grad():
        wanted = mix(*exact.half().double(), LAYOUT)
        found = mix.half()(q, k, v, LAYOUT)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), wanted, rtol=5e-3, atol=5e-3)


def test_counts_of_merged_tokens_are_exact_in_bfloat16():
    """All but one key are alike: a thousand tokens become one, which bfloat16 cannot count."""
    torch.manual_seed(0)
    mix = Attention(4, 1, mixing="token_merging", mixing_options={"ratio": 0.5}).mix
    k = torch.ones(1, 1, GRID[0] * GRID[1], 4)
    k[0, 0, 7] = -1
    q, v = torch.zeros_like(k), torch.ones_like(k)
    v[0, 0, 7] = 1000
    wanted = v.mean(2, keepdim=True).expand_as(v)
    found = mix(*(x.bfloat16() for x in (q, k, v)), LAYOUT)
    torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2)
