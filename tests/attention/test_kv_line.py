"""The members of the KV line that are combinations of parts, against their equations."""

import copy
import itertools

import pytest
import torch
from torch import nn

from attnseg.api import create_attention
from attnseg.attention.attention import Attention
from attnseg.config.cost import count_attention_macs
from attnseg.layers.factored import FactoredLinear, fuse_factors
from attnseg.layers.tokens import Place
from tests.attention.test_positional_softmax import assert_same
from tests.contracts.test_models import SIZE, make

C, H = 8, 2


def heads(x):
    return x.unflatten(-1, (H, -1)).transpose(1, 2)


def test_qvv_is_its_equation():
    """softmax(Q V^T / sqrt(d)) V with Q = X W1 W2, values and gradients."""
    torch.manual_seed(0)
    attention = create_attention("qvv3", dim=C, num_heads=H, bias=False).double()
    weights = dict(attention.project.named_parameters())
    assert sorted(weights) == [
        "kv.linear.weight", "q.linear.first.weight", "q.linear.second.weight",
    ]  # fmt: skip
    x = torch.randn(2, 6, C, dtype=torch.double, requires_grad=True)
    w1, w2 = (weights[f"q.linear.{factor}.weight"].T for factor in ("first", "second"))
    q, v = heads(x @ w1 @ w2), heads(x @ weights["kv.linear.weight"].T)
    mixed = (q @ v.mT / (C // H) ** 0.5).softmax(-1) @ v
    wanted = attention.out(mixed.transpose(1, 2).flatten(2))
    assert_same(attention(x, (2, 3)), wanted, (x, *attention.parameters()))


def test_qvv_trains_as_many_matrices_as_qkv_and_fuses_to_those_of_k_v():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    made = {name: create_attention(name, dim=C, num_heads=H) for name in ("qkv", "k_v", "qvv3")}
    assert count(made["qvv3"]) == count(made["qkv"]) - C  # The first factor has no bias.
    assert count(fuse_factors(made["qvv3"])) == count(made["k_v"])
    assert made["qvv3"].macs(6, (2, 3)) == made["k_v"].macs(6, (2, 3))


@pytest.mark.parametrize("model", ["setr", "cvt"])
def test_fused_factors_give_the_same_logits_at_the_cost_that_is_counted(model):
    net = make(model, "qvv3").eval()
    before = copy.deepcopy(net.state_dict())
    fused, image = fuse_factors(net), torch.randn(2, 1, *SIZE)
    assert not any(isinstance(module, FactoredLinear) for module in fused.modules())
    with torch.no_grad():
        assert (fused(image) - net(image)).abs().max() < 1e-5
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    closed, counted = count_attention_macs(net, (1, *SIZE))
    assert closed == counted == count_attention_macs(make(model, "k_v"), (1, *SIZE))[1]
    plain = make(model, "k_v")
    assert fuse_factors(plain) is plain


def test_a_factor_that_must_be_called_stays():
    attention = create_attention("qvv3", dim=C, num_heads=H)
    factors = attention.project["q"].linear
    handle = factors.first.register_forward_hook(lambda *_: None)
    assert isinstance(fuse_factors(attention).project["q"].linear, FactoredLinear)
    handle.remove()
    assert type(fuse_factors(attention).project["q"].linear) is nn.Linear
    factors.second = nn.Sequential(factors.second)
    assert isinstance(fuse_factors(attention).project["q"].linear, FactoredLinear)


def read(table, row, column):
    """Read `[rows, columns]` at a place between entries, by its definition."""
    total = 0
    for i, j in itertools.product(range(table.shape[0]), range(table.shape[1])):
        total = total + max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * table[i, j]
    return total


@pytest.mark.parametrize("grid", [(2, 3), (3, 2)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_kv_relpos_by_loops(grid, prefix):
    """Symmetric scores, and a table read at the offset; none for the prefix; any grid."""
    torch.manual_seed(0)
    attention = create_attention("kv_relpos", dim=C, num_heads=H, place=Place(0, 0, (2, 3)))
    attention = attention.double()
    nn.init.normal_(attention.mix.table)
    x = torch.randn(1, prefix + grid[0] * grid[1], C, dtype=torch.double, requires_grad=True)
    k, v = (heads(attention.project[name].linear(x)) for name in ("qk", "v"))
    scores = k @ k.mT / (C // H) ** 0.5
    assert torch.equal(scores, scores.mT)
    bias = torch.zeros_like(scores)
    on_grid = list(itertools.product(range(grid[0]), range(grid[1])))
    for (i, here), (j, there) in itertools.product(enumerate(on_grid), repeat=2):
        for head in range(H):
            table = attention.mix.table[head]
            shares = [(a - b) / side for a, b, side in zip(here, there, grid, strict=True)]
            at = [(s + 1) / 2 * (n - 1) for s, n in zip(shares, table.shape, strict=True)]
            bias[0, head, prefix + i, prefix + j] = read(table, *at)
    mixed = (scores + bias).softmax(-1) @ v
    wanted = attention.out(mixed.transpose(1, 2).flatten(2))
    assert_same(attention(x, grid), wanted, (x, *attention.parameters()))


def test_only_some_mixings_have_diagnostics():
    assert Attention(C, H).diagnostics() == {}
    assert Attention(C, H).findings() == []
    differential = Attention(C, H, mixing="differential")
    assert differential.diagnostics() == {"lambda": differential.mix.noise_weight()}
