"""Linear attention where its features vanish, and its second kind of features."""

import pytest
import torch

from attnseg.attention.linear import Linear
from attnseg.attention.mixing import Layout

LAYOUT = Layout((2, 3), (2, 3))


def draw(dtype=torch.double, tokens=6):
    torch.manual_seed(0)
    return torch.randn(3, 1, 2, tokens, 4, dtype=dtype)


def test_elu_features_equal_the_loop_over_queries_and_keys():
    q, k, v = draw()
    mixed = Linear(4, 2, 1.0, feature="elu")(q, k, v, LAYOUT)
    for head in range(2):
        for i in range(6):
            features = torch.nn.functional.elu(q[0, head, i]) + 1
            total, weight = torch.zeros(4, dtype=torch.double), 0.0
            for j in range(6):
                product = features @ (torch.nn.functional.elu(k[0, head, j]) + 1)
                total, weight = total + product * v[0, head, j], weight + product
            assert (mixed[0, head, i] - total / weight).abs().max() < 1e-12


@pytest.mark.parametrize("dead", ["q", "k"])
@pytest.mark.parametrize("feature", ["relu", "elu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_without_features_have_finite_outputs_and_gradients(dead, feature, dtype):
    q, k, v = draw(dtype)
    (q if dead == "q" else k).fill_(-200.0)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    mixed = Linear(4, 2, 1.0, feature=feature)(*inputs, LAYOUT)
    mixed.square().sum().backward()
    assert mixed.dtype == dtype
    assert mixed.isfinite().all()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert not mixed.any()  # exp(-200) is 0, too


def test_small_features_keep_their_proportions():
    q, k, v = draw()
    mix = Linear(4, 2, 1.0)
    torch.testing.assert_close(
        mix(1e-4 * q, 1e-4 * k, v, LAYOUT), mix(q, k, v, LAYOUT), atol=1e-12, rtol=0
    )


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match="unknown feature 'gelu'; choose one of relu, elu"):
        Linear(4, 2, 1.0, feature="gelu")
