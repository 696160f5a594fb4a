"""Attention maps are what the network computed: explicit formulas, its own outputs, two roads."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from attnseg.attention.attention import Attention, load_part
from attnseg.attention.channel_group import ChannelGroup
from attnseg.attention.differential import Differential
from attnseg.attention.identity import Identity
from attnseg.attention.mixing import Layout, Mixing
from attnseg.attention.pool import Pool
from attnseg.attention.random import Random
from attnseg.config.cost import find_attentions
from attnseg.errors import ConfigError
from attnseg.explain.attention_pictures import tile_matrices, weights_as_image
from attnseg.explain.explain import report_exactness
from attnseg.explain.jacobian import derive_weights, estimate_jacobians
from attnseg.explain.recording import AttentionRecord, MixerRecord, record_attentions
from attnseg.explain.run_attention import RunAttention
from attnseg.explain.score_symmetry import measure_symmetry
from attnseg.explain.selection import choose_layers, choose_point
from attnseg.explain.spread import mean_scores, measure_spread, sample_queries
from attnseg.explain.token_weights import weight_columns, weights_of_token
from attnseg.layers.matching import match_tokens
from attnseg.layers.tokens import TokenMixer
from attnseg.layers.vit import tokens_to_map
from attnseg.models.model import SegmentationModel
from tests.contracts.pairs import each_pair
from tests.contracts.test_models import SIZE, make

HEADS, GRID, WIDTH = 2, (3, 4), 6
OF_CHANNELS = {"transpose", "channel_group"}  # mixings that mix these instead of tokens
SUM_TO_1 = {"qkv", "kv", "kv_pos", "efficient", "linear", "alternate", *OF_CHANNELS}
SUM_TO_1 |= {"deformable", "token_merging", "spatial_reduction", "pooled_reduction"}
SUM_TO_1 |= {"k_v", "single", "qvv3", "kv_pos_2d", "kv_relpos"}
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
        out = mix(q, k, v, layout)
        return AttentionRecord(
            name="here", layout=layout, source=grid, mix=mix, q=q, k=k, v=v, out=out
        )


def make_mixing(name, scale, width=WIDTH):
    return load_part("mixing", name, Mixing, {})(width, HEADS, scale)


def softmax_rows(mix, q, k):
    return (mix.scale * q @ k.mT).softmax(2)


def positional_rows(mix, q, k):
    temperature, bias = mix.terms(Layout(GRID, GRID, 1, 1))
    return (temperature * mix.scale * q @ k.mT + bias).softmax(2)


def linear_rows(mix, q, k):
    products = q.relu() @ k.relu().mT
    return products / products.sum(2, keepdim=True).clamp_min(1e-12)


def differential_rows(mix, q, k):
    halves = zip(q.chunk(2, 2), k.chunk(2, 2), strict=True)
    wanted, noise = ((2**0.5 * mix.scale * a @ b.mT).softmax(2) for a, b in halves)
    return wanted - mix.noise_weight() * noise


def normalised_channel_rows(mix, q, k):
    q, k = (x / x.norm(dim=1, keepdim=True) for x in (q, k))
    return (mix.temperature * q.mT @ k).softmax(2)


def relative_rows(mix, q, k):
    bias = nn.functional.pad(mix.biases(Layout(GRID, GRID))[0].double(), (1, 0, 1, 0))
    return (mix.scale * q @ k.mT + bias).softmax(2)


def merged_rows(mix, q, k):
    targets = match_tokens(k[None, :, 1:].mean(1), int(mix.ratio * GRID[0] * GRID[1]))[0]
    member = nn.functional.one_hot(torch.cat((torch.zeros(1).long(), targets + 1))).double()
    sizes = member.sum(0)
    q, k = (member.mT @ x / sizes[:, None] for x in (q, k))
    return member @ (mix.scale * q @ k.mT + sizes.log()).softmax(2) @ (member / sizes).mT


FORMULAS = {
    "softmax": softmax_rows,
    "positional_softmax": positional_rows,
    "efficient": lambda mix, q, k: q.softmax(2) @ k.softmax(1).mT,
    "linear": linear_rows,
    "differential": differential_rows,
    "channel_group": lambda mix, q, k: (mix.scale * q.mT @ k).softmax(2),
    "transpose": normalised_channel_rows,
    "relative_softmax": relative_rows,
    "token_merging": merged_rows,
}


def explicit(name, mix, q, k):
    """Weights `[h, N, M]`, or `[h, d, d]`, as each paper writes them."""
    return FORMULAS[name](mix, q[0].double(), k[0].double())


@pytest.mark.parametrize("name", FORMULAS)
def test_maps_are_the_explicit_weights(name):
    mix = make_mixing(name, 0.7)
    here = make_record(mix)
    expected = explicit(name, mix, here.q, here.k).float()
    for token in (0, 1, TOKENS - 1):
        found = weights_of_token(here, token)
        own = expected if name in OF_CHANNELS else expected[:, token]
        assert found.kind == ("channels" if name in OF_CHANNELS else "tokens")
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
    assert list(records) == list(mixers)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    for name, here in records.items():
        token = here.token_at((SIZE[0] // 2, SIZE[1] // 2), SIZE)
        found = derive_weights(here, token)
        assert found.error < 1e-5, name
        assert (found.kind == "jacobian") == (not isinstance(mixers[name], Attention)), name
        if attn in SUM_TO_1 | {"differential"}:
            own = "channels" if isinstance(here.mix, ChannelGroup) else "tokens"
            assert found.kind == own, name
            total = torch.ones(found.weights.shape[:-1])
            if isinstance(here.mix, Differential):
                total -= here.mix.noise_weight().detach()
            torch.testing.assert_close(found.weights.sum(-1), total)
        found_spread = measure_spread(here, found, (1.0, 1.0))
        assert (found_spread is None) == (found.kind == "both")
        if found_spread is not None:
            assert (found_spread.entropy <= found_spread.highest_entropy + 1e-4).all()
            assert found_spread.distance.isfinite().all() == (0 not in here.grid)
        if isinstance(here, AttentionRecord):
            shared = attn.startswith(("kv", "single")) and here.same_tokens
            check_weights(here, found, token, shared if attn in SUM_TO_1 else None)
    with torch.no_grad():
        assert torch.equal(net(image), before)


def check_weights(here, found, token, shared):
    """Two roads to the weights agree; `shared` tells whether queries are keys, if that is known."""
    assert here.layout.key_tokens == here.k.shape[2]
    constant = here.mix_values(here.q, torch.ones_like(here.v))[0, :, token]
    if found.kind == "channels":
        torch.testing.assert_close(found.weights.sum(2), constant, atol=1e-5, rtol=1e-4)
    if found.kind == "tokens":
        sums = found.weights.sum(1, keepdim=True).expand_as(constant)
        torch.testing.assert_close(sums, constant, atol=1e-5, rtol=1e-4)
        whole = torch.cat([block for _, block in weight_columns(here)], 2)
        torch.testing.assert_close(whole[:, token], found.weights, atol=1e-6, rtol=1e-4)
        found_symmetry = measure_symmetry(here)
        assert (found_symmetry is None) == (not here.same_tokens)
        few = here.layout.key_tokens < 3  # Less their means, the scores of two are symmetric.
        if found_symmetry is not None and shared is not None and not few:
            for measure in (found_symmetry.asymmetry, found_symmetry.beyond_kv):
                assert shared == bool((measure < 1e-6).all()), here.name


class Gate(TokenMixer):
    """Not linear, in a window of a grid or over a context."""

    def __init__(self, dim=6):
        super().__init__(dim, 1)
        self.mix = nn.Conv2d(dim, dim, 3, padding=1)
        self.gate = nn.Linear(dim, dim)

    def forward(self, x, grid, context=None, context_grid=None):
        tokens, grid_of = (x, grid) if context is None else (context, context_grid)
        prefix = tokens.shape[1] - grid_of[0] * grid_of[1]
        near = self.mix(tokens_to_map(tokens, grid_of)).flatten(2).mT
        if context is not None:
            return self.gate(x) * near.mean(1, keepdim=True) + 0 * tokens[:, :1]
        return self.gate(x).tanh() * torch.cat((tokens[:, :prefix], near), 1)


def gated(context=None):
    torch.manual_seed(0)
    mixer, x = Gate(), torch.randn(1, 1 + 5 * 7, 6)
    source = (5, 7) if context is None else (3, 4)
    layout = Layout((5, 7), source, 1, 1)
    return MixerRecord(name="gate", layout=layout, source=source, mixer=mixer, x=x, context=context)


@pytest.mark.parametrize("crossed", [False, True])
def test_the_map_of_a_mixer_without_values_is_its_jacobian(crossed):
    here = gated(torch.randn(1, 1 + 3 * 4, 6) if crossed else None)
    token = 1 + 2 * 7 + 3
    found = derive_weights(here, token)
    assert found.kind == "jacobian"
    assert found.error < 1e-5
    whole = torch.autograd.functional.jacobian(
        lambda tokens: here.mix_tokens(here.mixer, tokens)[0, token], here.tokens
    )
    expected = whole[:, 0].norm(dim=(0, 2)) / 6**0.5
    torch.testing.assert_close(found.weights[0], expected)
    assert found.shares.sum() == pytest.approx(1)
    if not crossed:
        assert found.weights.count_nonzero() == 9


def test_jacobians_are_estimated_closely(monkeypatch):
    here = gated()
    tokens = torch.arange(1, 36, 3)
    exact = torch.cat([derive_weights(here, int(token)).weights for token in tokens])
    estimate = estimate_jacobians(here, tokens)
    assert (estimate - exact).norm() < 0.1 * exact.norm()
    assert (estimate == 0).equal(exact == 0)
    monkeypatch.setattr("attnseg.explain.jacobian.BATCH_NUMBERS", 1000)
    torch.testing.assert_close(estimate_jacobians(here, tokens), estimate)
    spread = measure_spread(here, derive_weights(here, 1), (5.0, 7.0))
    assert spread.entropy <= spread.highest_entropy < math.log2(9)  # the border has fewer
    assert 0 < spread.distance < 2**0.5


@pytest.mark.parametrize(
    ("mixer", "expected"),
    [
        (Identity(4, 1), [0, 0, 0, 0, 1, 0, 0, 0, 0]),
        (Pool(4, 1), [1 / 9] * 4 + [8 / 9] + [1 / 9] * 4),
        (Random(4, 1), Random(4, 1)._weights(9, 9, torch.device("cpu"))[4].tolist()),
    ],
)
def test_maps_of_the_null_controls(mixer, expected):
    torch.manual_seed(0)
    x, layout = torch.randn(1, 9, 4), Layout((3, 3), (3, 3))
    here = MixerRecord(name="null", layout=layout, source=(3, 3), mixer=mixer, x=x, context=None)
    found = derive_weights(here, 4)
    torch.testing.assert_close(found.weights, torch.tensor([expected]).float())
    spread = measure_spread(here, found, (3.0, 3.0))
    if isinstance(mixer, Identity):
        assert spread.entropy.item() == spread.highest_entropy.item() == 0
        assert spread.distance.item() == 0


class Cross(SegmentationModel):
    """Tokens of a coarser branch as context; a class token that asks another branch."""

    def __init__(self):
        nn.Module.__init__(self)
        self.tokens = Attention(8, 2)
        self.pooled = Attention(8, 2, gather="none", sharing="qk")
        self.asking = Attention(8, 2)

    def forward(self, image):
        x, context = image[..., :25, 0].mT, image[..., :13, 1].mT
        y = self.tokens(x, (4, 6), context=context, context_grid=(2, 6))
        y = self.pooled(y, (4, 6), context[:, 1:])
        return y, self.asking(y[:, :1], (0, 0), x, (4, 6))


def test_maps_of_cross_attention():
    torch.manual_seed(0)
    records = record_attentions(Cross().eval(), torch.randn(1, 8, 25, 2))
    for name, here in records.items():
        token = here.token_at((7, 3), (8, 12))
        found = derive_weights(here, token)
        assert found.kind == "tokens"
        assert found.error < 1e-5
        assert not here.same_tokens
        check_weights(here, found, token, None)
        spread = measure_spread(here, found, (8.0, 12.0))
        assert (spread.entropy <= spread.highest_entropy + 1e-5).all()
        assert spread.distance.isnan().all() == (name == "asking")
    tokens, asking = records["tokens"], records["asking"]
    assert (tokens.layout.query_prefix, tokens.layout.key_prefix) == (1, 1)
    # A context of 2 x 6 tokens covers the slice as the 4 x 6 queries do.
    assert tokens.key_centres((8.0, 12.0))[0, :2].tolist() == [[2, 1], [2, 3]]
    painted = weights_as_image(np.arange(12, dtype=np.float32)[None], tokens, (8, 12))
    assert painted.tolist() == np.arange(12).reshape(2, 6).repeat(4, 0).repeat(2, 1).tolist()
    assert (asking.grid, asking.prefix, asking.layout.key_prefix) == ((0, 0), 1, 1)
    assert asking.token_at((7, 3), (8, 12)) == 0
    assert records["pooled"].source == (1, 12)


class Near(nn.Module):
    """Softmax over the keys of each query's own half of the rows; the prefix takes all."""

    def forward(self, q, k, v, layout):
        half = torch.arange(layout.query_tokens) < layout.query_tokens // 2
        mask = half[:, None] == half
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def test_highest_entropy_counts_the_keys_that_can_be_reached():
    here = make_record(Near(), grid=(4, 4), prefix=0)
    found = measure_spread(here, derive_weights(here, 3), (1.0, 1.0))
    assert found.highest_entropy.tolist() == [3.0] * HEADS  # 8 of 16 keys
    assert (found.entropy < 3).all()


def test_keys_are_drawn_where_they_lie():
    """Joined keys in the middle of their cells; positions of their own for each group of heads."""
    here = make_record(Mean(), grid=(4, 4), prefix=0, stride=2)
    joined = dataclasses.replace(here, layout=here.layout._replace(joined=True))
    assert joined.key_centres((4.0, 8.0))[0].tolist() == [[1, 2], [1, 6], [3, 2], [3, 6]]
    painted = weights_as_image(np.arange(4, dtype=np.float32)[None], joined, (4, 4))
    assert painted.tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    positions = torch.tensor([[[[0.5, 0.5], [3.5, 3.5]], [[0.5, 3.5], [0.5, 0.5]]]])
    layout = here.layout._replace(keys=(1, 2), positions=positions)
    own = dataclasses.replace(here, layout=layout, v=here.v[:, :, :2], k=here.k[:, :, :2])
    assert own.key_centres((8.0, 4.0))[1].tolist() == [[1, 3.5], [1, 0.5]]
    weights = np.array([[1, 0], [0, 0]], np.float32)  # the first head, on its upper left key
    painted = weights_as_image(weights, own, (4, 4))
    assert (painted[0, 0], painted[3, 3]) == (0.5, 0)
    weights = np.array([[0, 0], [1, 0]], np.float32)  # the second head, on its upper right key
    painted = weights_as_image(weights, own, (4, 4))
    assert (painted[0, 0], painted[0, 3]) == (0, 0.5)
    found = measure_spread(own, derive_weights(own, 0), (4.0, 4.0))
    ways = torch.cdist(own.query_centres((4.0, 4.0)), own.key_centres((4.0, 4.0)))
    torch.testing.assert_close(found.distance, ways.mean((1, 2)))


def test_strided_keys_have_a_grid_of_their_own():
    records = record_attentions(make("cvt", "kv").eval(), torch.randn(1, 1, *SIZE))
    last = records["encoder.stages.2.blocks.0.attn"]
    assert (last.grid, last.key_grid, last.layout.cell, last.prefix) == ((2, 3), (1, 2), 2, 1)
    assert last.key_centres((20.0, 30.0)).tolist() == [[[5, 5], [5, 25]]]
    painted = weights_as_image(np.array([[1, 2]], np.float32), last, (2, 6))
    # Keys stand at the first and the third of three query tokens, two pixels each.
    assert painted.tolist() == [[1, 1, 1, 2, 2, 2]] * 2


def test_kv_scores_are_symmetric_but_not_its_rows():
    mix = make_mixing("softmax", 1.0)
    here = make_record(mix)
    kv = dataclasses.replace(here, k=here.q)
    matrix = mean_scores(kv, 100)
    assert torch.equal(matrix, matrix.T)
    rows = torch.cat([block for _, block in weight_columns(kv)], 2)
    assert (rows - rows.mT).abs().max() > 0.1
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
    found = measure_spread(here, weights_of_token(here, 1), (7.0, 8.0))
    assert found.entropy.tolist() == pytest.approx([1.0] * HEADS)
    assert found.highest_entropy.tolist() == [1.0] * HEADS
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
    found = measure_spread(here, weights_of_token(here, 4), (6.0, 12.0))
    weights = explicit("softmax", mix, here.q, here.k)[:, 4:, 4:]
    shares = weights / weights.sum(2, keepdim=True)
    places = here.query_centres((6.0, 12.0)).double()
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
    painted = weights_as_image(np.arange(12, dtype=np.float32)[None], here, (31, 50))
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
