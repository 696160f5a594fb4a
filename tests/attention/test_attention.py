"""Sharing and mixing against their definitions, written out plainly."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from attnseg.attention.attention import ALL_TOKENS, SHARINGS, Attention, list_parts, load_part
from attnseg.attention.gather import Gather
from attnseg.attention.mixing import Mixing

N, M, C, H = 6, 4, 8, 2


def softmax(q, k, v):
    return (q @ k.T / (C // H) ** 0.5).softmax(1) @ v


def efficient(q, k, v):
    return q.softmax(1) @ (k.softmax(0).T @ v)


def transpose(q, k, v):
    q, k = F.normalize(q, dim=0), F.normalize(k, dim=0)
    return ((q.T @ k).softmax(1) @ v.T).T


def channel_group(q, k, v):
    """Channel by channel, with the scale of the heads' width."""
    mixed = torch.zeros_like(v)
    for channel in range(q.shape[1]):
        scores = [sum(q[:, channel] * k[:, other]) for other in range(q.shape[1])]
        shares = (torch.stack(scores) / (C // H) ** 0.5).exp()
        for other in range(q.shape[1]):
            mixed[:, channel] += shares[other] / shares.sum() * v[:, other]
    return mixed


def linear(q, k, v):
    """Query by query, as a weighted mean."""
    mixed = torch.zeros(len(q), v.shape[1], dtype=v.dtype)
    for i in range(len(q)):
        shares = torch.stack([(q[i].clamp(0) * k[j].clamp(0)).sum() for j in range(len(k))])
        for j in range(len(k)):
            mixed[i] += shares[j] / shares.sum().clamp(1e-12) * v[j]
    return mixed


PLAIN = {
    "softmax": softmax,
    "efficient": efficient,
    "transpose": transpose,
    "channel_group": channel_group,
    "linear": linear,
}


# Mixings of channels need as many query as key tokens, so they have no case with a context.
CASES = [(mixing, cross) for mixing in PLAIN for cross in (False, True)]
CASES.remove(("transpose", True))
CASES.remove(("channel_group", True))


def by_definition(attention, mixing, x, memory):
    """What an attention makes of tokens `[N, C]` and `[M, C]`, head by head."""
    q, k, v = (
        attention.project[attention.reads[role]].linear(source)
        for role, source in (("q", x), ("k", memory), ("v", memory))
    )
    width = C // attention.num_heads
    heads = [
        PLAIN[mixing](q[:, h : h + width], k[:, h : h + width], v[:, h : h + width])
        for h in range(0, C, width)
    ]
    return attention.out(torch.cat(heads, 1))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize(("mixing", "cross"), CASES)
def test_equals_the_definition_head_by_head(sharing, mixing, cross):
    torch.manual_seed(0)
    attention = Attention(C, H, sharing=sharing, mixing=mixing).double()
    x = torch.randn(1, N, C, dtype=torch.double)
    context = torch.randn(1, M, C, dtype=torch.double) if cross else None
    wanted = by_definition(attention, mixing, x[0], (context if cross else x)[0])
    assert (attention(x, (2, 3), context)[0] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("sharing", ["none", "qk"])
@pytest.mark.parametrize(
    ("mixing", "heads", "cross"),
    [
        ("efficient", 1, False),
        ("efficient", 1, True),
        ("transpose", 1, False),
        ("transpose", H, False),
        ("channel_group", H, False),
    ],
)
def test_mixing_that_meets_the_weights_first_equals_its_definition(
    mixing, heads, cross, sharing, bias
):
    """With many tokens: output and gradients."""
    torch.manual_seed(0)
    attention = Attention(C, heads, bias, sharing=sharing, mixing=mixing).double()
    attention.mix.forward = None  # is not called
    x = torch.randn(2, 24, C, dtype=torch.double)
    memory = torch.randn(2, 30, C, dtype=torch.double) if cross else x
    out = attention(x, (4, 6), memory)
    wanted = torch.stack(
        [by_definition(attention, mixing, *pair) for pair in zip(x, memory, strict=True)]
    )
    towards = torch.randn_like(out)
    weights = [weight for name, weight in attention.named_parameters() if "mix" not in name]
    for ours, theirs in zip(
        (out, *torch.autograd.grad(out, weights, towards)),
        (wanted, *torch.autograd.grad(wanted, weights, towards)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_mixing_meets_the_weights_first_only_where_that_saves_operations():
    for options, tokens in (
        ({"mixing": "efficient"}, C),  # contexts are as large as the tokens
        ({"mixing": "transpose"}, C),
        ({"mixing": "efficient", "sharing": "k_v"}, 9 * C),  # keys need the projection, too
        ({"mixing": "softmax"}, 9 * C),
    ):
        attention = Attention(C, 1, **options)
        called = []
        attention.mix.register_forward_hook(lambda *_, called=called: called.append(True))
        attention(torch.randn(1, tokens, C), (1, tokens))
        assert called, options


def test_an_exported_attention_keeps_its_weights_as_factors():
    attention = Attention(C, 1, mixing="efficient").eval()
    graph = str(torch.export.export(attention, (torch.randn(1, 9 * C, C), (9, C))).graph)
    assert graph.count("aten.linear.default") == 4


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
        ({"mixing": "sofmax"}, "choose one of .*softmax"),
        ({"mixing": "attention"}, "unknown mixing"),  # a file of the folder, but no mixing
        ({"mixing": "identity"}, "unknown mixing"),
        ({"gather": "softmax"}, "unknown gather 'softmax'; choose one of .*none"),
        ({"gather_options": {"ratio": 2}}, "gather none has no option 'ratio'"),
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


def test_every_sharing_gather_and_mixing_runs_or_is_refused_with_advice():
    gathers, mixings = [ALL_TOKENS, *list_parts(Gather)], list_parts(Mixing)
    ran, refused = set(), {}
    for sharing, gather, mixing in itertools.product(SHARINGS, gathers, mixings):
        try:
            attention = Attention(32, 4, sharing=sharing, gather=gather, mixing=mixing)
        except ValueError as error:
            refused[sharing, gather, mixing] = str(error)
            continue
        out = attention(torch.randn(2, 1 + 6 * 8, 32), (6, 8))
        assert out.shape == (2, 49, 32), (sharing, gather, mixing)
        assert out.isfinite().all(), (sharing, gather, mixing)
        ran.add((sharing, gather, mixing))
    equal = {name for name in mixings if load_part("mixing", name, Mixing, {}).equal_tokens}
    assert {(g, m) for _, g, m in refused} == set(itertools.product(gathers[1:], equal))
    assert all(message.endswith("; use gather=none") for message in refused.values())
    assert len(ran) + len(refused) == len(SHARINGS) * len(gathers) * len(mixings)
