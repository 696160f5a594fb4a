"""Fused softmax attention: added channels, chosen kernels, and the kernels that ran."""

import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.attention.fused import fused_attention, observe_kernels, widen_heads


def scores(q, k, scale, bias=0.0):
    return q @ k.mT * scale + bias


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("d", "e"), [(6, 6), (8, 8), (7, 12), (16, 8)])
def test_added_channels_change_no_value(d, e, biased):
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 5, d, dtype=torch.double)
    v = torch.randn(2, 3, 5, e, dtype=torch.double)
    bias = torch.randn(2, 1, 5, dtype=torch.double) if biased else None
    wide = widen_heads(q, k, v, None if bias is None else bias / 0.3, 8)
    assert all(x.shape[3] % 8 == 0 for x in wide)
    assert (wide[0].shape[3] == wide[2].shape[3]) == (d == e)
    out = (scores(wide[0], wide[1], 0.3).softmax(-1) @ wide[2])[..., :e]
    wanted = scores(q, k, 0.3, 0.0 if bias is None else bias[:, :, None]).softmax(-1) @ v
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    assert not wide[2][..., e:].any()
    ours = fused_attention(q, k, v, 0.3, key_bias=bias)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixing", ["softmax", "positional_softmax", "differential"])
@pytest.mark.parametrize("backend", ["flash", "math"])
def test_the_chosen_kernel_runs(backend, mixing):
    torch.manual_seed(0)
    attention = Attention(32, 2, mixing=mixing, backend=backend)
    x = torch.randn(2, 12, 32, requires_grad=True)
    with observe_kernels() as kernels:
        mixed = attention(x, (3, 4))
    assert set(kernels) == {backend}
    attention.mix.backend = "auto"
    torch.testing.assert_close(mixed, attention(x, (3, 4)), rtol=0, atol=1e-5)
    assert torch.autograd.grad(mixed.sum(), x)[0].isfinite().all()


def test_a_backend_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        Attention(8, 2, backend="fast")
    with pytest.raises(ValueError, match="no fused kernel computes transpose mixing"):
        Attention(8, 2, mixing="transpose", backend="flash")
