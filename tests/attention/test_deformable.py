"""Sampled keys and the bias of relative places against plain loops and `grid_sample`."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from attnseg.attention.attention import Attention
from attnseg.attention.mixing import Layout
from attnseg.attention.relative_softmax import RelativeSoftmax
from attnseg.layers.bilinear import sample_bilinear
from attnseg.layers.tokens import Place

DIM, HEADS, GROUPS = 8, 4, 2


def make(grid, **options):
    torch.manual_seed(0)
    made = Attention(
        DIM,
        HEADS,
        place=Place(1, 0, grid),
        mixing="relative_softmax",
        gather="deformable",
        gather_options={"groups": GROUPS, "kernel": 3, **options},
    ).double()
    made.gather.linear.weight.data *= 30  # Offsets of whole cells, some of them out of the image.
    return made


@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (1, 1)])
def test_samples_and_gradients_are_those_of_grid_sample(shape):
    torch.manual_seed(0)
    values = torch.randn(2, 3, shape[0] * shape[1], 4, dtype=torch.double, requires_grad=True)
    points = (torch.rand(2, 3, 30, 2, dtype=torch.double) - 0.2) * 1.5 * max(shape)
    points.requires_grad_()
    ours = sample_bilinear(values, shape, points)
    # With half-open cells, the coordinates of `grid_sample` are defined for a side of one, too.
    xy = ((points.flip(3) + 0.5) / torch.tensor(shape).flip(0) * 2 - 1).flatten(0, 1)[:, :, None]
    maps = values.flatten(0, 1).mT.unflatten(2, shape)
    wanted = F.grid_sample(maps, xy, align_corners=False)[..., 0].mT.unflatten(0, (2, 3))
    assert (ours - wanted).abs().max() < 1e-12
    towards = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (values, points), towards),
        torch.autograd.grad(wanted, (values, points), towards),
        strict=True,
    ):
        assert (mine - theirs).abs().max() < 1e-11


def test_points_that_are_not_numbers_do_not_end_the_process():
    values, points = torch.ones(1, 1, 6, 2), torch.full((1, 1, 1, 2), torch.nan)
    assert sample_bilinear(values, (2, 3), points).isnan().all()


def read(values, row, column):
    """Read `[h, w, ...]` at a place between tokens, by its definition."""
    total = 0
    for i, j in itertools.product(range(values.shape[0]), range(values.shape[1])):
        total = total + max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * values[i, j]
    return total


@pytest.mark.parametrize(("grid", "stride"), [((3, 5), 1), ((5, 4), (3, 2)), ((1, 1), 4)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_deformable_attention_by_loops(grid, stride, prefix):
    made = make(grid, stride=stride)
    gather, (height, width) = made.gather, grid
    tokens = torch.randn(1, prefix + height * width, DIM, dtype=torch.double)
    layouts = []
    made.mix.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[3]))
    out = made(tokens, grid)[0]
    q = made.project["q"].linear(tokens)[0]
    query_maps = q[prefix:].mT.reshape(GROUPS, DIM // GROUPS, height, width)
    values = tokens[0, prefix:].reshape(height, width, GROUPS, DIM // GROUPS)
    features = gather.conv(query_maps)  # [g, c, H', W']
    small = features.shape[2:]
    step = stride if isinstance(stride, int) else stride[1]
    assert tuple(small) == (-(-height // step), -(-width // step))
    sampled, places = [], []
    for i, j in itertools.product(range(small[0]), range(small[1])):
        rows = []
        for group in range(GROUPS):
            feature = gather.norm(features[group, :, i, j])
            dy, dx = gather.linear(F.gelu(feature)).tanh() * 2
            y = ((i + 0.5) * 2 + dy) / small[0] - 1
            x = ((j + 0.5) * 2 + dx) / small[1] - 1
            at = ((y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1))
            rows.append(read(values[:, :, group], *at))
            places.append((group, at[0] + 0.5, at[1] + 0.5))
        sampled.append(torch.cat(rows))
    for place, position in zip(
        sorted(range(len(places)), key=lambda n: (places[n][0], n)),
        layouts[0].positions.flatten(1, 2)[0],
        strict=True,
    ):
        assert (torch.stack(places[place][1:]) - position).abs().max() < 1e-12
    memory = torch.cat((tokens[0, :prefix], torch.stack(sampled)))
    k, v = (made.project[role].linear(memory) for role in "kv")
    bias = F.pad(made.mix.biases(layouts[0])[0], (prefix, 0, prefix, 0))
    heads = [x.unflatten(1, (HEADS, -1)).transpose(0, 1) for x in (q, k, v)]
    mixed = (heads[0] @ heads[1].mT * (DIM // HEADS) ** -0.5 + bias).softmax(2) @ heads[2]
    wanted = made.out(mixed.transpose(0, 1).flatten(1))
    assert (out - wanted).abs().max() < 1e-12
    assert gather.macs(len(tokens[0]), grid)[1:] == (len(memory), tuple(small))


def biases_by_definition(mix, layout, keys, ends):
    """Biases `[h, queries, keys]` of keys at `[g, keys, 2]`, as shares by the given ends."""
    height, width = layout.queries
    table = mix.table.movedim(0, 2)
    wanted = torch.zeros(HEADS, height * width, keys.shape[1], dtype=torch.double)
    for head, query, key in itertools.product(*(range(n) for n in wanted.shape)):
        group = head * len(keys) // HEADS
        at = []
        for axis, place in enumerate(divmod(query, width)):
            share = (place + 0.5) / layout.queries[axis] - keys[group, key, axis] / ends[axis]
            at.append((share + 1) / 2 * (table.shape[axis] - 1))
        wanted[head, query, key] = read(table, *at)[head]
    return wanted


@pytest.mark.parametrize("grid", [(2, 3), (4, 3)])
def test_biases_by_loops(grid):
    """On the grid that the table is made for and on another one, with keys of every kind."""
    torch.manual_seed(0)
    mix = RelativeSoftmax(2, HEADS, 1.0, Place(grid=(2, 3))).double()
    halves = (-(-grid[0] // 2), -(-grid[1] // 2))
    free = torch.rand(1, GROUPS, 5, 2, dtype=torch.double) * 3
    ends = [max(side - 1, 1) for side in grid]
    context = Layout(grid, (1, 4))
    for layout, keys, spans in (
        (Layout(grid, grid), Layout(grid, grid).key_centres()[None], grid),
        (Layout(grid, halves, 0, 0, 2, True), None, grid),
        (Layout(grid, halves, 0, 0, 2), None, grid),
        (Layout(grid, (1, 5), positions=free), free[0] - 0.5, ends),
        (context, context.key_centres()[None], (1, 4)),
    ):
        at = (layout.key_centres()[None] if keys is None else keys).double()
        wanted = biases_by_definition(mix, layout, at, spans)
        assert (mix.biases(layout)[0] - wanted).abs().max() < 1e-12


def test_groups_follow_the_heads():
    for heads, groups in ((12, 3), (16, 4), (3, 1), (6, 1), (10, 2)):
        attention = Attention(heads * 4, heads, gather="deformable")
        assert attention.gather.groups == groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "groups 3 must divide the number of heads, 4"),
        ({"kernel": 4}, "kernel 4 must be odd"),
        ({"stride": 0}, "stride 0"),
        ({"stride": []}, r"stride \[\]"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make((2, 2), **options)


def test_a_context_on_another_grid_is_refused():
    tokens, context = torch.randn(1, 6, DIM).double(), torch.randn(1, 8, DIM).double()
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\); use gather=none"):
        make((2, 3))(tokens, (2, 3), context, (2, 4))
