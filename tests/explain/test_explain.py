"""Attention maps are what the network computed: explicit formulas, its own outputs, two roads."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from attnseg.attention.attention import Attention, load_part
from attnseg.attention.mixing import Layout, Mixing
from attnseg.config.cost import find_attentions
from attnseg.errors import ConfigError
from attnseg.explain.attention_pictures import tile_matrices, weights_as_image
from attnseg.explain.explain import report_exactness
from attnseg.explain.recording import AttentionRecord, record_attentions
from attnseg.explain.run_attention import RunAttention
from attnseg.explain.selection import choose_layers, choose_point
from attnseg.explain.spread import mean_scores, measure_spread, sample_queries, score_asymmetry
from attnseg.explain.token_weights import weight_columns, weights_of_token
from tests.contracts.pairs import each_pair, mixings
from tests.contracts.test_models import SIZE, make

HEADS, GRID, WIDTH = 2, (3, 4), 5
TOKENS = 1 + GRID[0] * GRID[1]


def make_record(mix, grid=GRID, prefix=1, stride=1, seed=0, width=WIDTH):
    """An attention with random queries, keys and values."""
    torch.manual_seed(seed)
    key_grid = (-(-grid[0] // stride), -(-grid[1] // stride))
    keys = prefix + key_grid[0] * key_grid[1]
    q = torch.randn(1, HEADS, prefix + grid[0] * grid[1], width)
    k, v = torch.randn(2, 1, HEADS, keys, width)
    with torch.no_grad():
        layout = Layout(grid, key_grid, prefix, prefix, stride)
        return AttentionRecord("here", mix, q, k, v, mix(q, k, v, layout), layout)


def make_mixing(name, scale, width=WIDTH):
    return load_part("mixing", name, Mixing, {})(width, HEADS, scale)


def explicit(name, mix, q, k):
    """Weights `[h, N, M]`, or `[h, d, d]`, as each paper writes them."""
    q, k = q[0].double(), k[0].double()
    if name == "softmax":
        return (mix.scale * q @ k.mT).softmax(2)
    if name == "positional_softmax":
        temperature, bias = mix.terms(k.shape[1])
        return (temperature * mix.scale * q @ k.mT + bias).softmax(2)
    if name == "efficient":
        return q.softmax(2) @ k.softmax(1).mT
    q, k = (x / x.norm(dim=1, keepdim=True) for x in (q, k))
    return (mix.temperature * q.mT @ k).softmax(2)


@pytest.mark.parametrize("name", mixings())
def test_maps_are_the_explicit_weights(name):
    mix = make_mixing(name, 0.7)
    here = make_record(mix)
    expected = explicit(name, mix, here.q, here.k).float()
    for token in (0, 1, TOKENS - 1):
        found = weights_of_token(here, token)
        own = expected if name == "transpose" else expected[:, token]
        assert found.kind == ("channels" if name == "transpose" else "tokens")
        torch.testing.assert_close(found.weights, own, atol=1e-6, rtol=1e-5)
        assert found.error < 1e-5


@each_pair
def test_every_attention_of_every_model(model, attn):
    net = make(model, attn).eval()
    image = torch.randn(1, 1, *SIZE)
    with torch.no_grad():
        before = net(image)
    records = record_attentions(net, image)
    mixers = find_attentions(net)
    assert list(records) == [n for n, mixer in mixers.items() if isinstance(mixer, Attention)]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    for name, here in records.items():
        token = here.prefix + here.grid[0] * here.grid[1] // 2
        found = weights_of_token(here, token)
        assert found.error < 1e-5, name
        mixes_channels = "channel_attn" in name or attn == "transpose"
        assert found.kind == ("channels" if mixes_channels else "tokens"), name
        torch.testing.assert_close(found.weights.sum(-1), torch.ones(found.weights.shape[:-1]))
        assert here.prefix + here.key_grid[0] * here.key_grid[1] == here.k.shape[2]
        if found.kind == "tokens":
            whole = torch.cat([block for _, block in weight_columns(here)], 2)
            torch.testing.assert_close(whole[:, token], found.weights, atol=1e-6, rtol=1e-4)
            shared = attn.startswith("kv") and here.same_tokens
            tilt = score_asymmetry(here)
            assert (tilt is None) == (not here.same_tokens)
            assert tilt is None or shared == bool((tilt < 1e-6).all()), name
        found_spread = measure_spread(here, found, (1.0, 1.0))
        assert found_spread is not None
        assert (found_spread.entropy <= found_spread.highest_entropy + 1e-4).all()
    with torch.no_grad():
        assert torch.equal(net(image), before)


def test_strided_keys_have_a_grid_of_their_own():
    records = record_attentions(make("cvt", "kv").eval(), torch.randn(1, 1, *SIZE))
    last = records["encoder.stages.2.blocks.0.attn"]
    assert (last.grid, last.key_grid, last.layout.cell, last.prefix) == ((2, 3), (1, 2), 2, 1)
    assert last.centres((10.0, 10.0), of_keys=True).tolist() == [[5, 5], [5, 25]]
    painted = weights_as_image(np.array([1, 2], np.float32), last, (2, 6))
    # Keys stand at the first and the third of three query tokens, two pixels each.
    assert painted.tolist() == [[1, 1, 1, 2, 2, 2]] * 2


def test_kv_scores_are_symmetric_but_not_its_rows():
    mix = make_mixing("softmax", 1.0)
    here = make_record(mix)
    kv = AttentionRecord("kv", mix, here.q, here.q, here.v, here.out, here.layout)
    matrix = mean_scores(kv, 100)
    assert torch.equal(matrix, matrix.T)
    assert (score_asymmetry(kv) < 1e-7).all()
    rows = torch.cat([block for _, block in weight_columns(kv)], 2)
    assert (rows - rows.mT).abs().max() > 0.1
    s = (here.q @ here.k.mT)[0, :, 1:, 1:].double()
    expected = ((s - s.mT) / 2).norm(dim=(1, 2)) / s.norm(dim=(1, 2))
    torch.testing.assert_close(score_asymmetry(here), expected, atol=1e-6, rtol=1e-6)
    assert mean_scores(here, 5).shape == (4, 4)  # every third token


class Mean(nn.Module):
    """Every token takes the same of all."""

    def forward(self, q, k, v, layout):
        return v.mean(2, keepdim=True).expand(-1, -1, q.shape[2], -1)


class Own(nn.Module):
    """Every token takes its own value."""

    def forward(self, q, k, v, layout):
        return v


class Turned(nn.Module):
    """Tokens and channels at once: the mean, channels reversed and doubled."""

    def forward(self, q, k, v, layout):
        return 2 * Mean()(q, k, v, layout).flip(3)


class Bent(nn.Module):
    """Not linear in the values."""

    def forward(self, q, k, v, layout):
        return v.square()


def test_spread_of_equal_weights_by_hand():
    here = make_record(Mean(), grid=(1, 2), prefix=1)
    found = measure_spread(here, weights_of_token(here, 1), (7.0, 4.0))
    assert found.entropy.tolist() == pytest.approx([1.0] * HEADS)
    assert found.highest_entropy == 1.0
    assert found.distance.tolist() == pytest.approx([2.0] * HEADS)  # mm: half stays, half goes 4
    third_on_class_token = pytest.approx([2 / 3] * HEADS)
    assert found.weight_on_grid.tolist() == third_on_class_token
    alone = make_record(Own(), grid=(3, 4))
    found = measure_spread(alone, weights_of_token(alone, 3), (1.0, 1.0))
    assert found.entropy.abs().max() < 1e-5
    assert found.distance.abs().max() == 0


def test_spread_does_not_depend_on_how_columns_are_cut():
    mix = make_mixing("softmax", 1.0, 3)
    here = make_record(mix, width=3, prefix=4)  # the first block holds class tokens only
    found = measure_spread(here, weights_of_token(here, 4), (2.0, 3.0))
    weights = explicit("softmax", mix, here.q, here.k)[:, 4:, 4:]
    shares = weights / weights.sum(2, keepdim=True)
    places = here.centres((2.0, 3.0), of_keys=False).double()
    expected = (shares * torch.cdist(places, places)).sum(2).mean(1)
    torch.testing.assert_close(found.distance.double(), expected, atol=1e-5, rtol=1e-5)
    entropy = -(shares * shares.log2()).sum(2).mean(1)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-5, rtol=1e-5)


def test_means_over_many_tokens_are_taken_over_some(monkeypatch):
    mix = make_mixing("softmax", 1.0)
    here = make_record(mix, grid=(6, 8))
    assert sample_queries(here) is None  # all
    monkeypatch.setattr("attnseg.explain.spread.MAX_QUERIES", 12)
    assert sample_queries(here).tolist() == list(range(1, 49, 5))
    found = measure_spread(here, weights_of_token(here, 1), (1.0, 1.0))
    shares = explicit("softmax", mix, here.q, here.k)[:, 1::5, 1:]
    shares = shares / shares.sum(2, keepdim=True)
    entropy = -(shares * shares.log2()).sum(2).mean(1)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-5, rtol=1e-5)
    together = make_record(Own(), grid=(6, 8))  # takes its own: fewer queries change what comes out
    assert sample_queries(together) is None


def test_a_mixing_of_tokens_and_channels_is_told_apart():
    here = make_record(Turned())
    found = weights_of_token(here, 2)
    assert found.kind == "both"
    torch.testing.assert_close(found.weights, torch.full((HEADS, TOKENS), 2 / TOKENS))
    assert found.error < 1e-5
    assert measure_spread(here, found, (1.0, 1.0)) is None


def test_a_mixing_that_is_not_linear_is_said_to_be(caplog, monkeypatch):
    here = make_record(Bent())
    found = weights_of_token(here, 2)
    assert found.error == pytest.approx(1, abs=1e-4)  # the derivative of a square is twice it
    monkeypatch.setattr(logging.getLogger("attnseg"), "propagate", True)
    report_exactness([RunAttention(None, {"here": here}, {"here": found})])
    assert "not linear" in caplog.text


def test_the_token_of_a_pixel():
    here = make_record(Mean(), grid=(3, 4), prefix=1)
    size = (30, 80)
    assert here.token_at((0, 0), size) == 1
    assert here.token_at((9, 19), size) == 1
    assert here.token_at((10, 20), size) == 1 + 4 + 1
    assert here.token_at((29, 79), size) == 12


def test_every_pixel_is_painted_with_its_own_token():
    here = make_record(Mean(), grid=(3, 4), prefix=0)
    painted = weights_as_image(np.arange(12, dtype=np.float32), here, (31, 50))
    for row in range(31):
        for column in range(50):
            assert painted[row, column] == here.token_at((row, column), (31, 50))


def test_mosaic_keeps_every_matrix():
    matrices = np.arange(3 * 4, dtype=np.float32).reshape(3, 2, 2)
    sheet = tile_matrices(matrices)
    assert sheet.shape == (5, 5)
    assert (sheet[3:, :2] == matrices[2]).all()
    assert np.nansum(sheet) == matrices.sum()


def test_the_point_is_in_the_largest_organ():
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 2:18, 2:18] = True
    masks[0, 4:16, 4:16] = False  # a ring, whose centre of mass is outside
    masks[1, 9:11, 9:11] = True
    row, column = choose_point(masks, None)
    assert masks[0, row, column]
    assert choose_point(masks[:, :8], (7, 19)) == (7, 19)
    assert choose_point(np.zeros_like(masks), None) == (10, 10)
    with pytest.raises(ConfigError, match=r"point: \[20, 0\] is outside .* row up to 19"):
        choose_point(masks, (20, 0))


def test_layers_by_name_or_pattern():
    names = ["stages.0.attn", "stages.0.channel_attn", "decoder.0.attn"]
    assert choose_layers(names, [], "run") == names
    assert choose_layers(names, ["*.attn"], "run") == [names[0], names[2]]
    with pytest.raises(ConfigError, match=r"layer: no 'stage.0.attn' in run; did you mean stages"):
        choose_layers(names, ["stage.0.attn"], "run")
