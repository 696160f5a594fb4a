"""The fast mask is a dropout: its rate, its scale, its gradient, its repeatability."""

import pytest
import torch

from attnseg.layers.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_and_scale(rate):
    torch.manual_seed(0)
    x = torch.ones(401, 997, requires_grad=True)  # not a multiple of four
    out = Dropout(rate)(x)
    kept = out != 0
    assert abs(kept.double().mean().item() - (1 - rate)) < 0.004  # over four standard deviations
    assert torch.allclose(out[kept], torch.tensor(1 / (1 - rate)), rtol=2e-4)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_neighbours_are_independent():
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(400_000)) != 0).double() - 0.5
    for lag in (1, 2, 3, 4, 5, 8):  # four of them come from one draw
        assert abs((kept[lag:] * kept[:-lag]).mean().item()) < 0.002


def test_repeats_with_the_seed_alone():
    x = torch.ones(1000)
    torch.manual_seed(5)
    first = Dropout(0.3)(x)
    other = Dropout(0.3)(x)
    torch.manual_seed(5)
    assert torch.equal(Dropout(0.3)(x), first)
    assert not torch.equal(first, other)


def test_nothing_is_dropped_when_evaluating_and_everything_at_rate_1():
    x = torch.randn(50)
    assert torch.equal(Dropout(0.7).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
