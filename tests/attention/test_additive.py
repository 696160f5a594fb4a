"""Efficient additive attention against its definition, token by token."""

import pytest
import torch

from attnseg.attention.additive import Additive

C = 6


def test_equals_the_definition_token_by_token():
    torch.manual_seed(0)
    mixer = Additive(C, 2).double()
    x = torch.randn(1, 7, C, dtype=torch.double)  # one prefix token
    with torch.no_grad():
        q, k = (mixer.project[name].linear(x[0]) for name in "qk")
        q, k = (torch.stack([token / token.square().sum().sqrt() for token in t]) for t in (q, k))
        weights = [sum(q[i] * mixer.weigh) * C**-0.5 for i in range(7)]
        length = sum(weight**2 for weight in weights) ** 0.5
        whole = sum(weights[i] / length * q[i] for i in range(7))
        wanted = torch.stack([mixer.out(mixer.modulate(whole * k[i]) + q[i]) for i in range(7)])
        assert (mixer(x, (2, 3))[0] - wanted).abs().max() < 1e-12


def test_tokens_of_zeros_have_a_gradient():
    mixer = Additive(C, 1, bias=False)
    mixer(torch.zeros(1, 6, C), (2, 3)).sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters() if p.grad is not None)


def test_a_context_is_refused():
    with pytest.raises(ValueError, match="additive takes no context"):
        Additive(C, 1)(torch.randn(1, 6, C), (2, 3), torch.randn(1, 6, C))
