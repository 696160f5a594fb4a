"""Norms and softmax of 16-bit tensors on GPUs, computed here by a CPU."""

import pytest
import torch

from attnseg.layers import narrow


@pytest.fixture
def as_on_gpus(monkeypatch):
    """The CPU's kernels round 16-bit results once, too."""
    monkeypatch.setattr(narrow, "is_narrow", lambda x: x.dtype == torch.bfloat16)


@pytest.mark.parametrize(
    "norm", [narrow.LayerNorm(8), narrow.GroupNorm(2, 8)], ids=["layer", "group"]
)
def test_norms_keep_the_type_and_round_once(norm, as_on_gpus):
    torch.manual_seed(0)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 8, requires_grad=True)
    found, wanted = norm(x.bfloat16()), norm(x)
    assert (found.dtype, wanted.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found.float(), wanted, rtol=0.03, atol=0.03)
    found.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in norm.parameters())


def test_softmax_in_16_bits_is_the_rounded_one(as_on_gpus):
    torch.manual_seed(0)
    x = torch.randn(3, 50).bfloat16()
    found = narrow.softmax(x, 1)
    assert torch.equal(found, x.float().softmax(1).bfloat16())


def test_on_cpus_nothing_changes():
    x = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow.narrow_once(x) is x
        assert narrow.softmax(x.bfloat16(), 1).dtype == x.bfloat16().softmax(1).dtype
        assert not narrow.is_narrow(x.bfloat16())
