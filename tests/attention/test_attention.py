"""Sharing and mixing against their definitions, written out plainly."""

import pytest
import torch
import torch.nn.functional as F

from attnseg.attention.attention import SHARINGS, Attention

N, M, C, H = 6, 4, 8, 2


def softmax(q, k, v):
    return (q @ k.T / (C // H) ** 0.5).softmax(1) @ v


def efficient(q, k, v):
    return q.softmax(1) @ (k.softmax(0).T @ v)


def transpose(q, k, v):
    q, k = F.normalize(q, dim=0), F.normalize(k, dim=0)
    return ((q.T @ k).softmax(1) @ v.T).T


PLAIN = {"softmax": softmax, "efficient": efficient, "transpose": transpose}


# Transpose mixing needs as many query as key tokens, so it has no case with a context.
CASES = [(mixing, cross) for mixing in PLAIN for cross in (False, True)]
CASES.remove(("transpose", True))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize(("mixing", "cross"), CASES)
def test_equals_the_definition_head_by_head(sharing, mixing, cross):
    torch.manual_seed(0)
    attention = Attention(C, H, sharing=sharing, mixing=mixing).double()
    x = torch.randn(1, N, C, dtype=torch.double)
    context = torch.randn(1, M, C, dtype=torch.double) if cross else None
    memory = context if cross else x
    q, k, v = (
        attention.project[SHARINGS[sharing][role]].linear(source)[0]
        for role, source in (("q", x), ("k", memory), ("v", memory))
    )
    heads = [
        PLAIN[mixing](q[:, h : h + C // H], k[:, h : h + C // H], v[:, h : h + C // H])
        for h in range(0, C, C // H)
    ]
    wanted = attention.out(torch.cat(heads, 1))
    assert (attention(x, (2, 3), context)[0] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("sharing", "projections"), [("none", 3), ("qk", 2), ("k_v", 2), ("single", 1)]
)
def test_sharing_decides_the_parameters(sharing, projections):
    attention = Attention(C, H, sharing=sharing)
    assert sum(p.numel() for p in attention.parameters()) == (projections + 1) * (C * C + C)


def test_kv_is_qkv_with_tied_weights():
    torch.manual_seed(0)
    kv, qkv = Attention(C, H, sharing="qk"), Attention(C, H)
    qkv.out.load_state_dict(kv.out.state_dict())
    for name, shared in (("q", "qk"), ("k", "qk"), ("v", "v")):
        qkv.project[name].load_state_dict(kv.project[shared].state_dict())
    x = torch.randn(2, N, C)
    assert torch.allclose(kv(x, (2, 3)), qkv(x, (2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "nearest: 2 or 4"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"sharing": "kq"}, "none, qk, k_v, single"),
        ({"mixing": "sofmax"}, "efficient, positional_softmax, softmax, transpose"),
        ({"mixing_options": {"pos_dim": 3}}, "no option 'pos_dim'"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Attention(**{"dim": C, "num_heads": H, **options})


def test_transpose_refuses_unequal_token_numbers():
    attention = Attention(C, H, mixing="transpose")
    with pytest.raises(ValueError, match="6 and 4"):
        attention(torch.randn(1, N, C), (2, 3), torch.randn(1, M, C))


def test_channels_of_zeros_have_a_gradient_in_transpose_mixing():
    """Padding gives such channels; a length of zero has no slope."""
    attention = Attention(C, H, mixing="transpose")
    with torch.no_grad():
        for name in "qk":
            attention.project[name].linear.weight[0] = 0
            attention.project[name].linear.bias[0] = 0
    out = attention(torch.randn(1, N, C), (2, 3))
    out.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in attention.parameters())
