"""Token merging around an attention against plain loops."""

import itertools

import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.attention.mixing import Layout
from attnseg.attention.token_merging import TokenMerging

HEADS, WIDTH = 2, 4


def groups_by_definition(k, prefix, merged):
    """Which tokens come together, as lists of indices: prefix, what is left of A, then B."""
    keys = [k[:, prefix + i].mean(0) for i in range(k.shape[1] - prefix)]
    first, second = range(0, len(keys), 2), range(1, len(keys), 2)
    proposals = []
    for i in first if second else ():
        cosines = [torch.cosine_similarity(keys[i], keys[j], 0).item() for j in second]
        j = max(range(len(cosines)), key=cosines.__getitem__)
        proposals.append((cosines[j], i, second[j]))
    accepted = {i: j for _, i, j in sorted(proposals, key=lambda p: (-p[0], p[1]))[:merged]}
    own = [[i] for i in range(prefix)]
    own += [[prefix + i] for i in first if i not in accepted]
    return own + [[prefix + j, *(prefix + i for i in accepted if accepted[i] == j)] for j in second]


def by_definition(q, k, v, prefix, merged, scale):
    """The output `[h, n, d]` of tokens `[h, n, d]`."""
    groups = groups_by_definition(k, prefix, merged)
    out = torch.zeros_like(q)
    for head, mine in itertools.product(range(len(q)), groups):
        query = q[head, mine].mean(0)
        weights = [len(g) * torch.exp(scale * query @ k[head, g].mean(0)) for g in groups]
        values = [v[head, g].mean(0) for g in groups]
        out[head, mine] = sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights)
    return out


@pytest.mark.parametrize("grid", [(3, 4), (3, 5), (1, 2), (1, 1)])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("prefix", [0, 1])
def test_merged_attention_by_loops(grid, ratio, prefix):
    torch.manual_seed(1)
    tokens = prefix + grid[0] * grid[1]
    q, k, v = torch.randn(3, 2, HEADS, tokens, WIDTH, dtype=torch.double)
    mix = TokenMerging(WIDTH, HEADS, 0.7, ratio=ratio)
    out = mix(q, k, v, Layout(grid, grid, prefix, prefix))
    merged = int(ratio * grid[0] * grid[1])
    for ours, *item in zip(out, q, k, v, strict=True):
        assert (ours - by_definition(*item, prefix, merged, 0.7)).abs().max() < 1e-12


def test_queries_of_a_context_on_the_same_grid_are_not_merged():
    torch.manual_seed(0)
    attention = Attention(HEADS * WIDTH, HEADS, mixing="token_merging").double()
    x, context = torch.randn(2, 1, 12, HEADS * WIDTH, dtype=torch.double)
    together = attention(x, (3, 4), context, (3, 4))
    alone = [attention(x[:, i : i + 1], (1, 1), context, (3, 4)) for i in range(12)]
    assert (together - torch.cat(alone, 1)).abs().max() < 1e-12


def test_queries_of_other_tokens_are_not_merged():
    q = torch.randn(1, HEADS, 6, WIDTH, dtype=torch.double)
    k, v = torch.randn(2, 1, HEADS, 8, WIDTH, dtype=torch.double)
    out = TokenMerging(WIDTH, HEADS, 0.7, ratio=0.5)(q, k, v, Layout((2, 3), (2, 4)))
    groups = groups_by_definition(k[0], 0, 4)
    keys, values = (torch.stack([x[0, :, g].mean(1) for g in groups], 1) for x in (k, v))
    sizes = torch.tensor([len(g) for g in groups]).double()
    wanted = (0.7 * q[0] @ keys.mT + sizes.log()).softmax(2) @ values
    assert (out[0] - wanted).abs().max() < 1e-12


def test_equal_tokens_change_nothing():
    """A group of equal tokens has their common output, and counts as often as it has members."""
    q, k, v = (torch.randn(1, HEADS, 6, WIDTH).repeat_interleave(2, 2).double() for _ in range(3))
    merged = TokenMerging(WIDTH, HEADS, 0.7, ratio=0.5)(q, k, v, Layout((3, 4), (3, 4)))
    plain = TokenMerging(WIDTH, HEADS, 0.7, ratio=0)(q, k, v, Layout((3, 4), (3, 4)))
    assert (merged - plain).abs().max() < 1e-12


@pytest.mark.parametrize("ratio", [-0.1, 0.6])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match=r"must be between 0 and 0.5"):
        TokenMerging(WIDTH, HEADS, 0.7, ratio=ratio)
