"""Weights of one attention in another: exact where they can be, else as near as was derived."""

import pytest
import torch

from attnseg.attention.attention import SHARINGS, Attention
from attnseg.conversion.moments import Moments, SiteMoments, measure_moments
from attnseg.conversion.surgery import convert_model, convert_site

DIM, HEADS, TOKENS = 24, 3, 40
CHOSEN = {"qk": ("query", "key"), "k_v": ("key", "value"), "single": ("query", "key", "value")}


def attention(sharing="none", bias=True, seed=0, **options):
    torch.manual_seed(seed)
    made = Attention(DIM, HEADS, bias, sharing=sharing, **options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def tokens(seed=9):
    """Tokens with a mean and correlations, as those of a network."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(4, TOKENS, DIM, generator=generator, dtype=torch.double)
    mixing = torch.randn(DIM, DIM, generator=generator, dtype=torch.double) / DIM**0.5
    return drawn @ mixing + torch.randn(DIM, generator=generator, dtype=torch.double)


def moments(x):
    return SiteMoments(Moments.of(x), Moments.of(x))


def convert(sharing, method, old, bias=True, **options):
    new = attention(sharing, bias, seed=5, **options)
    report = convert_site(new, old, method, moments(tokens()))
    return new, report


def heads(attention, role, x):
    projected = attention.project[attention.reads[role]].linear(x)
    return projected.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def scores(attention, x, centred=True):
    """Scores, less what a softmax over keys does not see."""
    products = heads(attention, "q", x) @ heads(attention, "k", x).mT
    return products - products.mean(3, keepdim=True) if centred else products


def outputs(attention, x):
    """What each head would add to the output for each single token."""
    weight = attention.out.weight.unflatten(1, (HEADS, -1)).transpose(0, 1)
    values = heads(attention, "v", x) @ weight.mT
    return values - values.mean((0, 2), keepdim=True)


def score_error(new, old, x, centred=True):
    return (scores(new, x, centred) - scores(old, x, centred)).norm().item()


def relative_error(of, new, old, x):
    return ((of(new, x) - of(old, x)).norm() / of(old, x).norm()).item() ** 2


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_same_attention_is_the_same_function(sharing):
    old = attention(sharing)
    for method in ("solve", "average"):
        new, report = convert(sharing, method, old)
        assert torch.equal(new(tokens(), (5, 8)), old(tokens(), (5, 8)))
        assert not report.tied and not report.fresh and not report.lost


@pytest.mark.parametrize("sharing", ["qk", "k_v", "single"])
def test_shared_projections_come_apart_without_a_change(sharing):
    old = attention(sharing)
    new, report = convert("none", "solve", old)
    torch.testing.assert_close(new(tokens(), (5, 8)), old(tokens(), (5, 8)), rtol=0, atol=1e-12)
    assert not report.tied and not report.fresh and not report.lost


@pytest.mark.parametrize("method", ["solve", "average", "value"])
def test_two_factors_of_the_queries_start_as_their_product(method):
    """The first is the identity; as a parent, both are multiplied."""
    old, x = attention(), tokens()
    new, report = convert("factored", method, old)
    plain, wanted = convert("k_v", method, old)
    torch.testing.assert_close(new(x, (5, 8)), plain(x, (5, 8)), rtol=0, atol=1e-12)
    assert torch.equal(new.project["q"].linear.first.weight, torch.eye(DIM, dtype=torch.double))
    assert report == wanted
    old = attention("factored")
    again, report = convert("none", method, old)
    torch.testing.assert_close(again(x, (5, 8)), old(x, (5, 8)), rtol=0, atol=1e-12)
    assert not report.tied and not report.fresh and not report.lost


@pytest.mark.parametrize("sharing", ["qk", "k_v", "single"])
def test_tied_projections_are_averaged_or_chosen(sharing):
    old = attention()
    roles = {r: old.project[r].linear for r in "qkv"}
    for method in ("average", *CHOSEN[sharing]):
        new, report = convert(sharing, method, old)
        for name, projection in new.project.items():
            expected = [roles[r] for r in name]
            if method != "average" and len(name) > 1:
                expected = [roles[method[0]]]
            for part in ("weight", "bias"):
                mean = torch.stack([getattr(each, part) for each in expected]).mean(0)
                assert torch.equal(getattr(projection.linear, part), mean), (method, name)
        assert list(report.tied) == [name for name in new.project if len(name) > 1]
        assert torch.equal(new.out.weight, old.out.weight)
        assert not report.fresh and not report.lost


def test_a_role_that_is_not_tied_cannot_be_chosen():
    with pytest.raises(ValueError, match="value shares no projection; use query or key"):
        convert("qk", "value", attention())


@pytest.mark.parametrize("bias", [True, False])
def test_solving_gives_back_what_was_shared(bias):
    old = attention(bias=bias)
    old.project["k"].load_state_dict(old.project["q"].state_dict())
    new, _ = convert("qk", "solve", old, bias)
    assert score_error(new, old, tokens(), centred=False) < 1e-10
    # Of all projections with these scores, it is the same one, not a rotated one.
    shared = new.project["qk"].linear.weight
    torch.testing.assert_close(shared, old.project["q"].linear.weight, rtol=0, atol=1e-10)
    old.project["v"].load_state_dict(old.project["q"].state_dict())
    for sharing in ("k_v", "single"):
        new, _ = convert(sharing, "solve", old, bias)
        ours, theirs = new(tokens(), (5, 8)), old(tokens(), (5, 8))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_solved_scores_are_the_nearest(bias, seed):
    old, x = attention(bias=bias, seed=seed), tokens()
    solved, _ = convert("qk", "solve", old, bias)
    best = score_error(solved, old, x, centred=bias)
    for method in ("average", "query", "key"):
        other, _ = convert("qk", method, old, bias)
        assert best < 0.99 * score_error(other, old, x, centred=bias), method
    torch.manual_seed(seed)
    linear = solved.project["qk"].linear
    for _ in range(20):  # No small step leads to nearer scores of pairs of tokens.
        changed = attention("qk", bias)
        changed.load_state_dict(solved.state_dict())
        with torch.no_grad():
            changed.project["qk"].linear.weight += 1e-3 * torch.randn_like(linear.weight)
            if bias:  # The mean of the projection stays.
                mean = x.flatten(0, 1).mean(0)
                moved = (linear.weight - changed.project["qk"].linear.weight) @ mean
                changed.project["qk"].linear.bias += moved
        assert paired_error(changed, old, x, bias) > paired_error(solved, old, x, bias)


def paired_error(new, old, x, bias):
    """Error of the scores, less what depends on one of the two tokens alone if there are biases."""
    total = 0.0
    every = x.flatten(0, 1)[None]  # Pairs of all tokens, as the moments are those of all.
    error = scores(new, every, False) - scores(old, every, False)
    if bias:
        error = error - error.mean(3, keepdim=True)
        error = error - error.mean(2, keepdim=True)
    return total + error.square().sum().item()


@pytest.mark.parametrize("seed", range(3))
def test_solved_keys_and_values_lose_least_of_scores_and_outputs(seed):
    old, x = attention(seed=seed), tokens()

    def loss(method):
        new, report = convert("k_v", method, old)
        assert not report.fresh and not report.lost
        every = x.flatten(0, 1)[None]
        return relative_error(scores, new, old, every) + relative_error(outputs, new, old, every)

    best = loss("solve")
    for method in ("average", "key", "value"):
        assert best < 0.99 * loss(method), method


@pytest.mark.parametrize("seed", range(3))
def test_solved_single_projections_have_the_nearest_scores_and_fitting_values(seed):
    old, x = attention(seed=seed), tokens()
    solved, report = convert("single", "solve", old)
    tied, _ = convert("qk", "solve", old)
    every = x.flatten(0, 1)[None]
    assert score_error(solved, tied, x) < 1e-10
    assert report.tied["out"] == "fitted to qkv"
    assert not [name for name in report.kept if name.startswith("out")]
    for method in ("average", "query", "key", "value"):
        other, _ = convert("single", method, old)
        assert score_error(solved, old, x) < score_error(other, old, x), method
        if method != "value":
            assert relative_error(outputs, solved, old, every) < relative_error(
                outputs, other, old, every
            )
    # The mean output stays, whatever the weights are.
    mean = heads(solved, "v", every).mean(2).flatten() @ solved.out.weight.T + solved.out.bias
    before = heads(old, "v", every).mean(2).flatten() @ old.out.weight.T + old.out.bias
    torch.testing.assert_close(mean, before, rtol=0, atol=1e-10)


def test_directions_without_tokens_keep_the_average():
    old, x = attention(), tokens()
    x[..., 5:] = 0  # fewer directions than a head has
    new = attention("qk", seed=5)
    convert_site(new, old, "solve", moments(x))
    average = (old.project["q"].linear.weight + old.project["k"].linear.weight) / 2
    torch.testing.assert_close(new.project["qk"].linear.weight[:, 5:], average[:, 5:])
    assert score_error(new, old, x) < score_error(convert("qk", "average", old)[0], old, x)


@pytest.mark.parametrize(
    ("mixing", "parts"),
    [("positional_softmax", "weight"), ("relative_softmax", "table"), ("window", "bias.table")],
)
def test_added_parts_start_neutral(mixing, parts):
    options = {"size": 64} if mixing == "window" else {}  # one window holds all tokens
    old = attention()
    new, report = convert("none", "average", old, mixing=mixing, mixing_options=options)
    torch.testing.assert_close(new(tokens(), (5, 8)), old(tokens(), (5, 8)))
    assert report.neutral == [f"mix.{parts}"]
    assert not report.fresh
    back = attention(seed=7)
    assert convert_site(back, new, "average").lost == [f"mix.{parts}"]


def test_gathers_and_other_mixings_are_reported():
    new, report = convert("none", "average", attention(), gather="spatial_reduction")
    assert report.fresh
    assert all(name.startswith("gather.") for name in report.fresh)
    back = convert_site(attention(seed=7), new, "average")
    assert back.lost == report.fresh


def test_moments_are_those_of_the_tokens_of_queries_and_keys():
    x = tokens()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = attention("none", gather="spatial_reduction")

        def forward(self, images):
            return self.attn(images, (5, 8))

    net = Net()
    measured = measure_moments(net, [x[:2], x[2:]])["attn"]
    expected = Moments.of(x)
    torch.testing.assert_close(measured.queries.mean, x.mean((0, 1)))
    torch.testing.assert_close(measured.queries.covariance, expected.covariance)
    torch.testing.assert_close(
        measured.queries.covariance, torch.cov(x.flatten(0, 1).T, correction=0)
    )
    gathered = net.attn.gather(x, (5, 8), x, (5, 8)).tokens
    torch.testing.assert_close(measured.keys.mean, gathered.mean((0, 1)))
    assert not net.attn._forward_hooks
    assert not net.attn.project["q"]._forward_pre_hooks


def test_networks_that_differ_elsewhere_are_refused():
    old = torch.nn.Sequential(attention(), torch.nn.Linear(3, 2))
    new = torch.nn.Sequential(attention("qk"), torch.nn.Linear(3, 1))
    with pytest.raises(ValueError, match="differ outside of their attentions"):
        convert_model(new, old, "average", {})
