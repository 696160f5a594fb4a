"""KV+Pos as computed equals KV+Pos as published, an n x n x m tensor reduced by a linear map."""

import itertools
from statistics import median

import numpy as np
import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.attention.mixing import Layout
from attnseg.attention.positional_softmax import PositionalSoftmax
from attnseg.benchmark.timing import alternate


def pair_code(rows: int, columns: int, m: int) -> torch.Tensor:
    """Sinusoidal code `[rows, columns, m]` of index pairs, entry by entry from its definition."""
    half = int(np.ceil(m / 4) * 2)
    code = np.zeros((rows, columns, 2 * half))
    for i in range(rows):
        for j in range(columns):
            for t in range(0, half, 2):
                frequency = 1 / 10000 ** (t / half)
                code[i, j, t], code[i, j, t + 1] = np.sin(i * frequency), np.cos(i * frequency)
                code[i, j, half + t] = np.sin(j * frequency)
                code[i, j, half + t + 1] = np.cos(j * frequency)
    return torch.from_numpy(code[:, :, :m])


def published(q, k, v, weight, bias, scale):
    """The construction of arXiv 2305.19129: copy scores to m channels, add the code, map to one."""
    scores = (q @ k.transpose(2, 3) * scale)[..., None]
    logits = (scores + pair_code(q.shape[2], k.shape[2], len(weight)).to(scores)) @ weight + bias
    return logits.softmax(-1) @ v


@pytest.mark.parametrize("m", [3, 7, 10, 20, 50])
@pytest.mark.parametrize(("keys", "d"), [(11, 8), (6, 8), (11, 3)])
def test_reduced_form_equals_the_published_one(m, keys, d):
    torch.manual_seed(m)
    mix = PositionalSoftmax(d, 2, d**-0.5, pos_dim=m).double()
    q = torch.randn(2, 2, 11, d, dtype=torch.double, requires_grad=True)
    k, v = (torch.randn(2, 2, keys, d, dtype=torch.double, requires_grad=True) for _ in range(2))
    aim = torch.randn(2, 2, 11, d, dtype=torch.double)
    bias = torch.tensor(0.7, dtype=torch.double)  # of the published map; it cancels
    wanted = (q, k, v, mix.weight)

    ours = mix(q, k, v, Layout((1, 11), (1, keys)))
    theirs = published(q, k, v, mix.weight, bias, d**-0.5)
    assert (ours - theirs).abs().max() < 1e-12
    our_gradients = torch.autograd.grad((ours * aim).sum(), wanted)
    their_gradients = torch.autograd.grad((theirs * aim).sum(), wanted)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        assert (a - b).abs().max() < 1e-12


def code_of(place: float, channels: int) -> list[float]:
    """Sinusoidal code of one coordinate, entry by entry from its definition."""
    code = []
    for t in range(0, channels, 2):
        frequency = 1 / 10000 ** (t / channels)
        code += [np.sin(place * frequency), np.cos(place * frequency)]
    return code


def place_code(place: tuple[float, float] | None, channels: int) -> list[float]:
    """Code of a row, then of a column; zeros for a token without a place."""
    if place is None:
        return [0.0] * channels
    half = int(np.ceil(channels / 4) * 2)
    return [*code_of(place[0], half), *code_of(place[1], half)][:channels]


def grid_code(queries: list, keys: list, m: int) -> torch.Tensor:
    """P(row_i, column_i, row_j, column_j) of all pairs of places, `[queries, keys, m]`."""
    half = int(np.ceil(m / 4) * 2)
    rows = [[place_code(i, half) + place_code(j, m - half) for j in keys] for i in queries]
    return torch.tensor(rows, dtype=torch.double)


def places(grid: tuple[int, int], prefix: int, cell: int = 1, middle: float = 0.0) -> list:
    on_grid = itertools.product(*(range(side) for side in grid))
    return [None] * prefix + [(r * cell + middle, c * cell + middle) for r, c in on_grid]


@pytest.mark.parametrize("m", [7, 10, 50])
@pytest.mark.parametrize(
    ("layout", "keys"),
    [
        (Layout((3, 4), (3, 4)), places((3, 4), 0)),
        (Layout((3, 4), (3, 4), 1, 1), places((3, 4), 1)),
        (Layout((4, 6), (2, 3), 0, 2, 2, True), places((2, 3), 2, 2, 0.5)),
        (Layout((4, 6), (2, 3), 1, 0, 2), places((2, 3), 0, 2)),
        (Layout((1, 3), (2, 2), of_context=True), places((2, 2), 0)),
    ],
)
def test_code_of_rows_and_columns_folds_likewise(m, layout, keys):
    torch.manual_seed(m)
    mix = PositionalSoftmax(6, 2, 6**-0.5, pos_dim=m, code="grid").double()
    q = torch.randn(2, 2, layout.query_tokens, 6, dtype=torch.double, requires_grad=True)
    k, v = (
        torch.randn(2, 2, layout.key_tokens, 6, dtype=torch.double, requires_grad=True)
        for _ in range(2)
    )
    code = grid_code(places(layout.queries, layout.query_prefix), keys, m)
    scores = (q @ k.mT * 6**-0.5)[..., None]
    theirs = ((scores + code) @ mix.weight + 0.7).softmax(-1) @ v
    assert_same(mix(q, k, v, layout), theirs, (q, k, v, mix.weight))
    with torch.no_grad():  # another kernel
        assert (mix(q, k, v, layout) - theirs).abs().max() < 1e-12


def test_code_of_sampled_keys_is_that_of_their_places():
    """Two images and two groups of heads, each with keys of its own; places have a gradient."""
    torch.manual_seed(0)
    mix = PositionalSoftmax(3, 4, 0.5, pos_dim=10, code="grid").double()
    q = torch.randn(2, 4, 7, 3, dtype=torch.double, requires_grad=True)
    k, v = (torch.randn(2, 4, 6, 3, dtype=torch.double, requires_grad=True) for _ in range(2))
    at = (3 * torch.rand(2, 2, 5, 2, dtype=torch.double)).requires_grad_()
    layout = Layout((2, 3), (1, 5), 1, 1, positions=at)
    bias = torch.zeros(2, 4, 6, dtype=torch.double)
    of_row, of_column = mix.weight[6:8], mix.weight[8:]
    for image, head, key in itertools.product(range(2), range(4), range(5)):
        row, column = at[image, head // 2, key] - 0.5
        code = (row.sin(), row.cos()), (column.sin(), column.cos())
        own = sum(w * c for w, c in zip((*of_row, *of_column), (*code[0], *code[1]), strict=True))
        bias[image, head, key + 1] = own
    theirs = (mix.weight.sum() * 0.5 * q @ k.mT + bias[:, :, None]).softmax(-1) @ v
    assert_same(mix(q, k, v, layout), theirs, (q, k, v, mix.weight, at))
    with torch.no_grad():
        assert (mix(q, k, v, layout) - theirs).abs().max() < 1e-12


def assert_same(ours, theirs, inputs):
    """Values and gradients agree to 1e-12."""
    assert (ours - theirs).abs().max() < 1e-12
    aim = torch.randn_like(ours)
    found, wanted = (torch.autograd.grad((out * aim).sum(), inputs) for out in (ours, theirs))
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-12


def test_grid_code_tells_a_transposed_grid_from_the_same_numbers():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 12, 8)
    wide, tall = Layout((3, 4), (3, 4)), Layout((4, 3), (4, 3))
    for code, same in (("index", True), ("grid", False)):
        mix = PositionalSoftmax(8, 2, 1.0, code=code)
        assert torch.equal(mix(q, k, v, wide), mix(q, k, v, tall)) is same
        assert mix.needs_grid is not same


def test_attention_of_many_tokens_agrees_in_float32():
    torch.manual_seed(0)
    attention = Attention(64, 4, sharing="qk", mixing="positional_softmax")
    x = torch.randn(1, 49, 64)
    mix = attention.mix
    k, v = (
        attention.project[name].linear(x).unflatten(2, (4, 16)).transpose(1, 2)
        for name in ("qk", "v")
    )
    theirs = published(k, k, v, mix.weight, 0.0, 0.25).transpose(1, 2).flatten(2)
    assert (attention(x, (7, 7)) - attention.out(theirs)).abs().max() < 1e-5


@pytest.mark.slow
def test_reduced_form_is_twenty_times_faster():
    """784 tokens of ViT-B's width, forward alone; the published code is prepared beforehand."""
    mix = PositionalSoftmax(64, 12, 0.125)
    q, k, v = torch.randn(3, 1, 12, 784, 64)
    layout = Layout((28, 28), (28, 28))
    index = torch.from_numpy(np.arange(784.0))[:, None] / 10000 ** (np.arange(0, 26, 2) / 26)
    code = torch.stack((index.sin(), index.cos()), -1).flatten(1).float()
    pairs = torch.cat((code[:, None].expand(-1, 784, -1), code[None].expand(784, -1, -1)), -1)

    def nnm():
        scores = (q @ k.transpose(2, 3) * 0.125)[..., None]
        return ((scores + pairs[..., :50]) @ mix.weight).softmax(-1) @ v

    with torch.inference_mode():
        assert torch.allclose(nnm(), mix(q, k, v, layout), atol=1e-4)
        found = alternate({"published": nnm, "reduced": lambda: mix(q, k, v, layout)}, 5)
    slow, fast = (median(s.seconds for s in samples) for samples in found.values())
    print(f"{slow / fast:.0f} times faster: {1e3 * fast:.1f} ms instead of {1e3 * slow:.0f} ms")
    assert slow / fast >= 20


def test_temperature_starts_at_one():
    for seed in range(20):
        torch.manual_seed(seed)
        temperature, _ = PositionalSoftmax(8, 2, 1.0).terms(Layout((1, 5), (1, 5)))
        assert temperature.item() == pytest.approx(1, abs=1e-5)


def test_published_start_is_nearly_flat_and_inverted_in_half_of_the_layers():
    torch.manual_seed(3)
    mix = PositionalSoftmax(8, 2, 1.0, pos_dim=10, init="published")
    torch.manual_seed(3)
    assert torch.equal(mix.weight, 0.02 * torch.randn(10))
    starts = torch.stack(
        [
            PositionalSoftmax(8, 2, 1.0, pos_dim=10, init="published").weight.sum()
            for _ in range(500)
        ]
    )
    assert starts.std().item() == pytest.approx(0.02 * 10**0.5, rel=0.1)
    assert 0.4 < (starts < 0).float().mean() < 0.6


@pytest.mark.parametrize(
    ("temperature", "words"),
    [(1.0, []), (0.05, ["flat"]), (-0.05, ["inverted", "flat"]), (-0.8, ["inverted"])],
)
def test_an_inverted_or_flat_attention_is_a_finding(temperature, words):
    attention = Attention(16, 2, sharing="qk", mixing="positional_softmax")
    with torch.no_grad():
        attention.mix.weight += (temperature - 1) / 50
    assert attention.diagnostics()["temperature"].item() == pytest.approx(temperature, abs=1e-5)
    assert [finding.split(":")[0] for finding in attention.findings()] == words
    assert all(f"{temperature:.2g}" in finding for finding in attention.findings())


def test_position_term_breaks_the_symmetry_of_kv():
    """Without it, permuting the tokens permutes the output; with it, it does not."""
    torch.manual_seed(0)
    x, order = torch.randn(1, 9, 16), torch.randperm(9)
    for mixing, equivariant in (("softmax", True), ("positional_softmax", False)):
        attention = Attention(16, 2, sharing="qk", mixing=mixing)
        same = torch.allclose(
            attention(x, (3, 3))[:, order], attention(x[:, order], (3, 3)), atol=1e-5
        )
        assert same is equivariant


def test_options_that_cannot_be_are_refused():
    for options, message in (
        ({"pos_dim": 2}, "pos_dim 2 leaves no channel to the keys' code; use 3 or more"),
        ({"pos_dim": 6, "code": "grid"}, "pos_dim 6 leaves .* use 7 or more"),
        ({"code": "rows"}, "unknown code 'rows'; choose one of index, grid"),
        ({"init": "zero"}, "unknown init 'zero'; choose one of unit, published"),
    ):
        with pytest.raises(ValueError, match=message):
            PositionalSoftmax(8, 2, 1.0, **options)
