"""Tokens, their maps, the MLP and CvT's convolutional projection."""

from functools import partial

import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.layers.vit import Mlp, PatchTokens, QuickGELU, tokens_to_map
from attnseg.models.cvt import ConvProjection


def test_mlp_with_quick_gelu():
    torch.manual_seed(0)
    mlp = Mlp(4, 8, act=QuickGELU).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    hidden = mlp.fc1(x)
    activated = hidden * (1.702 * hidden).sigmoid()
    torch.testing.assert_close(mlp.act(hidden), activated, rtol=0, atol=1e-12)
    expected = mlp.fc2(activated)
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("class_token", [False, True])
def test_tokens_of_patches_are_contiguous(class_token):
    """Every block passes its input's memory layout on."""
    embed = PatchTokens(3, 8, 4, (2, 3), class_token)
    assert embed(torch.randn(2, 3, 8, 12))[0].is_contiguous()


@pytest.mark.parametrize("items", [1, 2])
@pytest.mark.parametrize("prefix", [0, 1])
def test_map_of_tokens_is_channels_last(items, prefix):
    """Convolutions choose their kernel by the strides, which must also say so for one item."""
    tokens = torch.arange(items * (prefix + 6) * 4.0).view(items, prefix + 6, 4)
    tokens_map = tokens_to_map(tokens, (2, 3))
    assert tokens_map.stride()[1:] == (1, 12, 4)
    assert tokens_map.stride(0) >= 24  # a smaller one of a single item would hide the layout
    for row in range(2):
        for column in range(3):
            assert torch.equal(tokens_map[:, :, row, column], tokens[:, prefix + 3 * row + column])


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("grid", [(4, 4), (5, 3)], ids=str)
def test_thinned_projection_is_the_strided_one(prefix, grid):
    """Every second place of a convolution is the same convolution with stride 2."""
    torch.manual_seed(0)
    projection = ConvProjection(4, bias=True, stride=2).double().eval()
    torch.nn.init.normal_(projection.norm.running_mean)
    tokens = torch.randn(2, prefix + grid[0] * grid[1], 4, dtype=torch.float64)
    thinned = projection.thinned(projection(tokens, grid, False), grid)
    strided = projection(tokens, grid, True)
    torch.testing.assert_close(thinned, strided, rtol=0, atol=1e-12)
    assert thinned.shape[1] == projection.macs(tokens.shape[1], grid, True)[1]


def test_keys_are_every_second_query_where_both_share_a_projection():
    attention = Attention(4, 1, projection=partial(ConvProjection, stride=2), sharing="qk")
    seen = []
    attention.mix.register_forward_pre_hook(lambda mix, inputs: seen.extend(inputs))
    attention(torch.randn(2, 12, 4), (3, 4))
    q, k, v, layout = seen
    assert (layout.queries, layout.keys, layout.cell) == ((3, 4), (2, 2), 2)
    assert torch.equal(k, q.unflatten(2, (3, 4))[:, :, ::2, ::2].flatten(2, 3))
    assert v.shape == k.shape
