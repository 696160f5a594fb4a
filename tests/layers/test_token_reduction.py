"""Merged and pruned tokens: plain loops, the way back, models, costs and what is refused."""

import pytest
import torch
from torch import nn

from attnseg.config import cost
from attnseg.config.build import ATTENTION, factory
from attnseg.config.components import attention_component
from attnseg.errors import ConfigError
from attnseg.export.tracing import onnx_bytes
from attnseg.layers.encoder import restore_tokens, run_blocks
from attnseg.layers.matching import rank_descending
from attnseg.layers.token_reduction import MergeTokens, PruneTokens
from attnseg.layers.tokens import Place
from tests.contracts.pairs import attentions
from tests.contracts.test_models import SIZE, assert_alive, make

REDUCTIONS = ("merge", "prune")
PLAIN_ENCODERS = (
    ("setr", ()),
    ("setr", ("model.head=mla",)),
    ("transunet", ()),
)


def merge_by_definition(tokens, sizes, merged):
    """Groups of tokens that come together, in the order in which they go on; then their means."""
    first, second = range(0, len(tokens), 2), range(1, len(tokens), 2)
    proposals = []
    for i in first:
        cosines = [torch.cosine_similarity(tokens[i], tokens[j], 0).item() for j in second]
        j = max(range(len(cosines)), key=cosines.__getitem__)
        proposals.append((-cosines[j], i, second[j]))
    accepted = {i: j for _, i, j in sorted(proposals)[:merged]}
    groups = [[i] for i in first if i not in accepted]
    groups += [[j, *(i for i in accepted if accepted[i] == j)] for j in second]
    total = [sum(sizes[i] for i in group) for group in groups]
    means = [sum(tokens[i] * sizes[i] for i in g) / n for g, n in zip(groups, total, strict=True)]
    return groups, torch.stack(means), torch.stack(total)


@pytest.mark.parametrize("count", [7, 12])
def test_merging_by_loops(count):
    torch.manual_seed(0)
    tokens = torch.randn(2, count, 5, dtype=torch.double)
    sizes = torch.randint(1, 4, (2, count)).double()
    step = MergeTokens(5, 3, per_block=3)(tokens, sizes, 0)
    for item in range(2):
        groups, means, total = merge_by_definition(tokens[item], sizes[item], 3)
        assert (step.tokens[item] - means).abs().max() < 1e-12
        assert torch.equal(step.sizes[item], total)
        wanted = [next(n for n, g in enumerate(groups) if i in g) for i in range(count)]
        assert step.targets[item].tolist() == wanted
    assert step.dropped.shape == (2, 0, 5)
    assert MergeTokens(5, 3, per_block=99)(tokens, sizes, 0).tokens.shape[1] == count - count // 2
    assert MergeTokens(5, 3)(tokens[:, :1], sizes[:, :1], 0) is None


@pytest.mark.parametrize("count", [2, 7, 12])
def test_pruning_by_loops(count):
    torch.manual_seed(0)
    tokens = torch.randn(2, count, 8, dtype=torch.double)
    prune = PruneTokens(8, 4, keep=0.5).double()
    step = prune(tokens, torch.ones(2, count), 1)
    predictor = prune.predictors["1"]
    for item in range(2):
        embedded = predictor.embed(tokens[item])
        shared = embedded[:, 4:].mean(0)
        scores = [predictor.score(torch.cat((one[:4], shared))).item() for one in embedded]
        best = sorted(range(count), key=lambda i: (-scores[i], i))[: max(1, count // 2)]
        rest = [i for i in range(count) if i not in best]
        assert (step.tokens[item] - tokens[item, sorted(best)]).abs().max() < 1e-12
        assert (step.dropped[item] - tokens[item, rest]).abs().max() < 1e-12
    assert (restore_tokens(step.tokens, 0, [step]) - tokens).abs().max() < 1e-12


def test_depth_decides_where_tokens_are_pruned():
    for depth, after in ((12, ["2", "5", "8"]), (4, ["0", "1", "2"]), (2, ["0"]), (1, [])):
        assert list(PruneTokens(8, depth).predictors) == after
    tokens = torch.randn(1, 6, 8)
    assert PruneTokens(8, 12)(tokens, torch.ones(1, 6), 1) is None


def test_scores_in_order_with_ties_and_without_numbers():
    scores = torch.tensor([[1.0, 3.0, 1.0, torch.nan, 2.0]])
    assert rank_descending(scores).tolist() == [[2, 0, 3, 4, 1]]


class Double(nn.Module):
    """A block that doubles its tokens, and notes how many there are on which grid."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, tokens, grid):
        self.seen.append((tokens.shape[1], grid))
        return 2 * tokens


def test_every_token_has_a_value_at_its_place_again():
    torch.manual_seed(0)
    blocks = nn.ModuleList(Double() for _ in range(4))
    tokens = torch.randn(2, 2 + 12, 8)
    outputs = run_blocks(blocks, tokens, (3, 4), range(4), PruneTokens(8, 4, keep=0.5))
    assert [block.seen[0] for block in blocks] == [
        (14, (3, 4)), (8, (1, 6)), (5, (1, 3)), (3, (1, 1))
    ]  # fmt: skip
    left = 2 * tokens  # Each place holds the first, second, fourth ... multiple of its own token.
    for output, powers in zip(outputs, ({2}, {2, 4}, {2, 4, 8}, {2, 4, 8, 16}), strict=True):
        factors = (output / tokens).round()
        assert torch.allclose(factors * tokens, output)
        assert {int(factor) for factor in factors[:, 2:].flatten()} == powers
        assert (factors[:, :2] == max(powers)).all()
    assert torch.equal(outputs[0], left)
    merged = run_blocks(blocks, tokens, (3, 4), [3], MergeTokens(8, 4, per_block=2))[0]
    assert torch.equal(merged[:, :2], 16 * tokens[:, :2])
    assert torch.allclose(merged.sum(1), 16 * tokens.sum(1), atol=1e-4)  # means by size keep sums
    assert len({tuple(token.tolist()) for token in merged[0, 2:]}) == 12 - 3 * 2


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("model", "options"), PLAIN_ENCODERS)
def test_models_train_and_see_fewer_tokens(model, options, reduction):
    chosen = (f"tokens={reduction}", *options)
    net = make(model, "qkv", options=chosen)
    assert_alive(model, "qkv", chosen)
    net.eval()
    images = torch.randn(2, 1, *SIZE)
    with torch.inference_mode():
        together, alone = net(images), net(images[:1])
        mapped = torch.func.vmap(lambda image: net(image[None])[0])(images)
    assert (together[:1] - alone).abs().max() < 1e-5
    assert (together - mapped).abs().max() < 1e-5
    image = (1, 64, 96)
    closed, counted = cost.count_attention_macs(net, image)
    assert closed == counted
    assert counted < cost.count_attention_macs(make(model, "qkv", options=options), image)[0]


@pytest.mark.full
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_exported_graphs_take_any_batch(reduction):
    net = make("setr", "kv", options=(f"tokens={reduction}", "model.depth=2")).eval()
    batch = torch.export.Dim("batch")
    with torch.enable_grad():
        program = torch.export.export(
            net, (torch.zeros(2, 1, *SIZE),), dynamic_shapes=({0: batch},), strict=False
        )
    images = torch.randn(3, 1, *SIZE)
    with torch.inference_mode():
        assert torch.allclose(program.module()(images), net(images), atol=1e-5)
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(images), net(images), atol=1e-5)
    assert len(onnx_bytes(program)) > 0


@pytest.mark.parametrize("name", attentions())
def test_an_attention_says_whether_it_needs_the_grid(name):
    """The claim is held against what it does with the same tokens on other grids."""
    make_attention = factory("attn", attention_component(name), ATTENTION)
    for block in (0, 1):
        torch.manual_seed(0)
        attention = make_attention(dim=16, num_heads=2, place=Place(0, block, (8, 12))).eval()
        for parameter in attention.parameters():  # Some start at a value that has no effect.
            nn.init.normal_(parameter, std=0.3)
        tokens = torch.randn(1, 1 + 96, 16)
        with torch.inference_mode():
            square, *others = (attention(tokens, grid) for grid in ((8, 12), (12, 8), (1, 96)))
        moved = any((other - square).abs().max() > 1e-4 for other in others)
        assert attention.needs_grid == moved


@pytest.mark.parametrize(
    ("model", "attn", "options", "message"),
    [
        ("setr", "pool", (), "which Pool needs; use tokens=none, or an attention without grid"),
        ("transunet", "deformable", (), "which Deformable needs"),
        ("cvt", "qkv", (), "tokens: CvT needs the grid of its tokens .*; use tokens=none"),
        ("dae_former", "efficient", (), "tokens: DAEFormer needs the grid"),
        ("setr", "qkv", ("model.tokens.per_block=0",), r"model\.tokens: per_block 0 must be 1"),
        ("setr", "qkv", ("+model.tokens.keep=1",), r"model\.tokens\.keep: no such"),
    ],
)
def test_what_cannot_be_reduced_is_refused_in_one_line(model, attn, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(model, attn, options=("tokens=merge", *options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_shares_outside_of_0_and_1_are_refused(keep):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        PruneTokens(8, 4, keep)
