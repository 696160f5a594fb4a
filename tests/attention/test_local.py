"""Windows, strided grids, stripes and neighbourhoods against their definitions, token by token."""

from itertools import cycle

import pytest
import torch

from attnseg.attention.attention import SHARINGS, Attention, load_part
from attnseg.attention.grid_attention import GridAttention
from attnseg.attention.mixing import Layout, Mixing
from attnseg.attention.neighborhood import Neighborhood
from attnseg.attention.stripes import Stripes
from attnseg.attention.window import Window
from attnseg.layers.tokens import Place

HEADS, WIDTH = 3, 5
GRIDS = [(5, 7), (8, 4), (2, 3), (1, 4), (1, 1)]
CASES = [
    ("window", {"size": 4}),
    ("window", {"size": 4, "shift": True}),
    ("window", {"size": 3, "shift": True, "cut_to_grid": False}),
    ("window", {"size": 7, "shift": True, "cut_to_grid": False}),
    ("grid_attention", {"size": 3}),
    ("grid_attention", {"size": 4}),
    ("stripes", {"widths": [2]}),
    ("stripes", {"widths": [1, 3]}),
    ("neighborhood", {"size": 3}),
    ("neighborhood", {"size": 5, "dilation": 2}),
]
PLACES = [Place(0, 0), Place(2, 1)]


def make_mixing(name, options, place=PLACES[1], heads=HEADS):
    mixing = load_part("mixing", name, Mixing, options)(WIDTH, heads, 0.7, place, **options)
    with torch.no_grad():
        for parameter in mixing.parameters():
            parameter.normal_()
    return mixing.double()


def pair_in_window(mix, length, i, j):
    """Whether two tokens of an axis share a window, and their offset."""
    shift = mix.shift if length > mix.size or not mix.cut_to_grid else 0
    return (i - shift) // mix.size == (j - shift) // mix.size, i - j


def pair_in_strided_grid(mix, length, i, j):
    step = -(-length // min(mix.size, length))
    return i % step == j % step, i // step - j // step


def pair_of_neighbors(mix, length, i, j):
    count = min(mix.size, length)
    step = min(mix.dilation, length // count)
    series = list(range(i % step, length, step))
    first = min(max(series.index(i) - count // 2, 0), len(series) - count)
    return j in series[first : first + count], (j - i) // step


PAIRS = {Window: pair_in_window, GridAttention: pair_in_strided_grid}
PAIRS[Neighborhood] = pair_of_neighbors


def bias_of_pair(mix, grid, head, i, j):
    """The bias of the score of two tokens (row, column); `None` if one does not reach the other."""
    if isinstance(mix, Stripes):
        horizontal = head < HEADS // 2 + (1 - mix.place.block % 2)
        axis = 0 if horizontal else 1
        return 0.0 if i[axis] // mix.width == j[axis] // mix.width else None
    pairs = [PAIRS[type(mix)](mix, grid[axis], i[axis], j[axis]) for axis in (0, 1)]
    if not all(reached for reached, _ in pairs):
        return None
    row, column = (offset + mix.size - 1 for _, offset in pairs)
    return mix.bias.table[row * (2 * mix.size - 1) + column, head].item()


def explicit_weights(mix, q, k, layout):
    """Weights `[h, N, N]` of queries and keys `[h, N, d]`, one by one."""
    prefix, (_, width) = layout.query_prefix, layout.queries
    scores = mix.scale * q.double() @ k.double().mT
    for head in range(len(q)):
        for i in range(prefix, layout.query_tokens):
            for j in range(prefix, layout.query_tokens):
                places = (divmod(token - prefix, width) for token in (i, j))
                bias = bias_of_pair(mix, layout.queries, head, *places)
                scores[head, i, j] = -torch.inf if bias is None else scores[head, i, j] + bias
    return scores.softmax(2)


@pytest.mark.parametrize("place", PLACES, ids=["even block", "odd block"])
@pytest.mark.parametrize(("name", "options"), CASES)
@torch.no_grad()
def test_equals_the_definition_token_by_token(name, options, place):
    torch.manual_seed(0)
    mix = make_mixing(name, options, place)
    for prefix, grid in enumerate(GRIDS):
        layout = Layout(grid, grid, prefix % 3, prefix % 3)
        q, k, v = torch.randn(3, 1, HEADS, layout.query_tokens, WIDTH, dtype=torch.double)
        wanted = explicit_weights(mix, q[0], k[0], layout)
        assert (mix(q, k, v, layout) - wanted @ v).abs().max() < 1e-12, grid
        # Unit vectors as values: the weights themselves.
        units = torch.eye(layout.query_tokens, dtype=torch.double).expand(1, HEADS, -1, -1)
        weights = mix(q, k, units, layout)[0]
        assert (weights - wanted).abs().max() < 1e-12, grid
        assert torch.equal(weights == 0, wanted == 0), grid


@pytest.mark.parametrize("block", [0, 1])
def test_one_head_changes_the_direction_of_its_stripes(block):
    mix = make_mixing("stripes", {"widths": [1]}, Place(0, block), heads=1)
    layout = Layout((3, 4), (3, 4))
    units = torch.eye(12, dtype=torch.double)[None, None]
    reached = mix(*torch.randn(2, 1, 1, 12, WIDTH, dtype=torch.double), units, layout)[0, 0, 5] > 0
    row, column = {4, 5, 6, 7}, {1, 5, 9}
    assert set(reached.nonzero().flatten().tolist()) == (column if block else row)


@pytest.mark.parametrize(
    ("sharing", "name", "options"),
    [(sharing, *case) for sharing, case in zip(cycle(SHARINGS), CASES[2:], strict=False)],
)
def test_gradients_are_those_of_finite_differences(sharing, name, options):
    torch.manual_seed(0)
    attention = Attention(6, 3, sharing=sharing, mixing=name, mixing_options=options).double()
    x = torch.randn(1, 1 + 4 * 3, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, (4, 3)), x)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_cost_grows_as_the_tokens_and_the_reach(name, options):
    """On four times as many tokens: four times, and stripes are twice as long, too."""
    mix = make_mixing(name, options)
    macs = [mix.macs(Layout((n, n), (n, n))) for n in (84, 168)]
    assert macs[1] == macs[0] * (8 if name == "stripes" else 4)
    reach = {
        "window": options.get("size", 0) ** 2,
        "grid_attention": options.get("size", 0) ** 2,
        "stripes": 84 * options.get("widths", [0])[-1],
        "neighborhood": options.get("size", 0) ** 2,
    }[name]
    assert macs[0] == 2 * 84**2 * reach * HEADS * WIDTH


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("window", {"size": 0}, "size 0 is not possible; use 1 or more"),
        ("grid_attention", {"size": 0}, "size 0 is not possible; use 1 or more"),
        ("stripes", {"widths": []}, r"widths \[\] are not possible"),
        ("stripes", {"widths": [2, 0]}, r"widths \[2, 0\] are not possible"),
        ("neighborhood", {"size": 4}, "size 4 has no middle token; use 3, 5, 7"),
        ("neighborhood", {"dilation": 0}, "dilation 0 is not possible"),
    ],
)
def test_impossible_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_mixing(name, options)


def test_a_context_is_refused():
    attention = Attention(6, 3, mixing="window")
    x, context = torch.randn(2, 1, 12, 6)
    with pytest.raises(
        ValueError, match=r"keys on the grid of the queries, \(3, 4\), got \(1, 12\)"
    ):
        attention(x, (3, 4), context)
    with pytest.raises(ValueError, match="12 and 8"):
        attention(x, (3, 4), context[:, :8])
