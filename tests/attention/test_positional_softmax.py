"""KV+Pos as computed equals KV+Pos as published, an n x n x m tensor reduced by a linear map."""

from statistics import median

import numpy as np
import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.attention.mixing import Layout
from attnseg.attention.positional_softmax import PositionalSoftmax
from attnseg.benchmark.timing import alternate


def pair_code(rows: int, columns: int, m: int) -> torch.Tensor:
    """Sinusoidal code `[rows, columns, m]` of index pairs, entry by entry from its definition."""
    half = int(np.ceil(m / 4) * 2)
    code = np.zeros((rows, columns, 2 * half))
    for i in range(rows):
        for j in range(columns):
            for t in range(0, half, 2):
                frequency = 1 / 10000 ** (t / half)
                code[i, j, t], code[i, j, t + 1] = np.sin(i * frequency), np.cos(i * frequency)
                code[i, j, half + t] = np.sin(j * frequency)
                code[i, j, half + t + 1] = np.cos(j * frequency)
    return torch.from_numpy(code[:, :, :m])


def published(q, k, v, weight, bias, scale):
    """The construction of arXiv 2305.19129: copy scores to m channels, add the code, map to one."""
    scores = (q @ k.transpose(2, 3) * scale)[..., None]
    logits = (scores + pair_code(q.shape[2], k.shape[2], len(weight)).to(scores)) @ weight + bias
    return logits.softmax(-1) @ v


@pytest.mark.parametrize("m", [3, 7, 10, 20, 50])
@pytest.mark.parametrize(("keys", "d"), [(11, 8), (6, 8), (11, 3)])
def test_folded_form_equals_the_published_one(m, keys, d):
    torch.manual_seed(m)
    mix = PositionalSoftmax(d, 2, d**-0.5, pos_dim=m).double()
    q = torch.randn(2, 2, 11, d, dtype=torch.double, requires_grad=True)
    k, v = (torch.randn(2, 2, keys, d, dtype=torch.double, requires_grad=True) for _ in range(2))
    aim = torch.randn(2, 2, 11, d, dtype=torch.double)
    bias = torch.tensor(0.7, dtype=torch.double)  # of the published map; it cancels
    wanted = (q, k, v, mix.weight)

    ours = mix(q, k, v, Layout((1, 11), (1, keys)))
    theirs = published(q, k, v, mix.weight, bias, d**-0.5)
    assert (ours - theirs).abs().max() < 1e-12
    our_gradients = torch.autograd.grad((ours * aim).sum(), wanted)
    their_gradients = torch.autograd.grad((theirs * aim).sum(), wanted)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        assert (a - b).abs().max() < 1e-12


def test_attention_of_many_tokens_agrees_in_float32():
    torch.manual_seed(0)
    attention = Attention(64, 4, sharing="qk", mixing="positional_softmax")
    x = torch.randn(1, 49, 64)
    mix = attention.mix
    k, v = (
        attention.project[name].linear(x).unflatten(2, (4, 16)).transpose(1, 2)
        for name in ("qk", "v")
    )
    theirs = published(k, k, v, mix.weight, 0.0, 0.25).transpose(1, 2).flatten(2)
    assert (attention(x, (7, 7)) - attention.out(theirs)).abs().max() < 1e-5


@pytest.mark.slow
def test_folded_form_is_twenty_times_faster():
    """784 tokens of ViT-B's width, forward alone; the published code is prepared beforehand."""
    mix = PositionalSoftmax(64, 12, 0.125)
    q, k, v = torch.randn(3, 1, 12, 784, 64)
    layout = Layout((28, 28), (28, 28))
    index = torch.from_numpy(np.arange(784.0))[:, None] / 10000 ** (np.arange(0, 26, 2) / 26)
    code = torch.stack((index.sin(), index.cos()), -1).flatten(1).float()
    pairs = torch.cat((code[:, None].expand(-1, 784, -1), code[None].expand(784, -1, -1)), -1)

    def nnm():
        scores = (q @ k.transpose(2, 3) * 0.125)[..., None]
        return ((scores + pairs[..., :50]) @ mix.weight).softmax(-1) @ v

    with torch.inference_mode():
        assert torch.allclose(nnm(), mix(q, k, v, layout), atol=1e-4)
        found = alternate({"published": nnm, "folded": lambda: mix(q, k, v, layout)}, 5)
    slow, fast = (median(s.seconds for s in samples) for samples in found.values())
    print(f"{slow / fast:.0f} times faster: {1e3 * fast:.1f} ms instead of {1e3 * slow:.0f} ms")
    assert slow / fast >= 20


def test_temperature_starts_at_one():
    for seed in range(20):
        torch.manual_seed(seed)
        temperature, _ = PositionalSoftmax(8, 2, 1.0).terms(5)
        assert temperature.item() == pytest.approx(1, abs=1e-5)


def test_position_term_breaks_the_symmetry_of_kv():
    """Without it, permuting the tokens permutes the output; with it, it does not."""
    torch.manual_seed(0)
    x, order = torch.randn(1, 9, 16), torch.randperm(9)
    for mixing, equivariant in (("softmax", True), ("positional_softmax", False)):
        attention = Attention(16, 2, sharing="qk", mixing=mixing)
        same = torch.allclose(
            attention(x, (3, 3))[:, order], attention(x[:, order], (3, 3)), atol=1e-5
        )
        assert same is equivariant


def test_too_few_channels_are_refused():
    with pytest.raises(ValueError, match="pos_dim 2"):
        PositionalSoftmax(8, 2, 1.0, pos_dim=2)
