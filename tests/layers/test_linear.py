"""The linear layer: what PyTorch's computes, by other products where its weight is large."""

import pytest
import torch
import torch.nn.functional as F

from attnseg.layers import linear
from attnseg.layers.linear import Linear

WIDTH = 1024  # from which on a square weight is large


@pytest.fixture
def large(monkeypatch):
    """Small numbers count as large ones, in double precision, too."""
    monkeypatch.setattr(linear, "_COLUMNS", 3)
    monkeypatch.setattr(linear, "suits", lambda x, layer: True)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("tokens", [(6,), (2, 3), (7, 1), (5,)], ids=str)
def test_gradients_and_theirs_are_exact(large, tokens, bias):
    torch.manual_seed(0)
    layer = Linear(5, 7, bias).double()  # three products of at most 3 columns, 2 of the gradient
    x = torch.randn(*tokens, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-14)

    def function(x, *parameters):
        names = (name for name, _ in layer.named_parameters())
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("frozen", ["input", "weight", "bias"])
def test_of_what_is_frozen(large, frozen):
    layer, x = Linear(5, 7), torch.ones(3, 5, requires_grad=True)
    values = {"input": x, "weight": layer.weight, "bias": layer.bias}
    values[frozen].requires_grad_(False)
    layer(x).sum().backward()
    assert [name for name, value in values.items() if value.grad is None] == [frozen]


@pytest.mark.parametrize("widths", [(WIDTH, WIDTH), (512, 2500), (2500, 512)], ids=str)
@pytest.mark.parametrize("tokens", [(1, 257), (2, 98), (1, 2100)], ids=str)
def test_same_numbers_as_torch(tokens, widths):
    torch.manual_seed(0)
    layer, x = Linear(*widths), torch.randn(*tokens, widths[0], requires_grad=True)
    assert linear.suits(x, layer)
    inputs = (x, layer.weight, layer.bias)
    towards = torch.randn(*tokens, widths[1])
    ours, theirs = layer(x), F.linear(*inputs)
    for a, b in zip(
        (ours, *torch.autograd.grad(ours, inputs, towards)),
        (theirs, *torch.autograd.grad(theirs, inputs, towards)),
        strict=True,
    ):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_what_it_suits():
    layer, x = Linear(WIDTH, WIDTH), torch.empty(2, 3, WIDTH)
    assert linear.suits(x, layer)
    for other in (x.double(), x.bfloat16(), x.to("meta")):
        assert not linear.suits(other, layer)
    assert not linear.suits(x, Linear(WIDTH, WIDTH - 1))
    assert not linear.suits(x, Linear(WIDTH, WIDTH).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not linear.suits(x, layer)


def test_an_exported_graph_holds_a_linear_layer_for_any_batch():
    layer, x = Linear(WIDTH, 2 * WIDTH).eval(), torch.randn(2, 3, WIDTH)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.linear.default"]
