"""Decoders against the equations of their papers."""

import pytest
import torch
import torch.nn.functional as F

from attnseg.layers.map_decoders import MLPDecoder, PlainMLPDecoder
from attnseg.layers.mix_transformer import PatchClassify


@pytest.mark.parametrize("kind", [MLPDecoder, PlainMLPDecoder])
def test_mlp_decoder_is_segformers(kind):
    """Equation 4 of arXiv 2105.15203: unify, resize, concatenate, fuse, classify."""
    torch.manual_seed(0)
    decoder = kind((4, 6, 8), 16, 3).eval()
    maps = [torch.randn(2, dim, side, side + 1) for dim, side in ((4, 12), (6, 6), (8, 3))]
    unified = [unify(x) for unify, x in zip(decoder.unify, maps, strict=True)]
    resized = [
        F.interpolate(x, size=(12, 13), mode="bilinear", align_corners=False) for x in unified
    ]
    expected = decoder.classify(decoder.fuse(torch.cat(resized, 1)))
    torch.testing.assert_close(decoder(maps), expected, rtol=0, atol=1e-6)


def test_both_mlp_decoders_agree():
    """Same weights by the same names, same logits, same gradients."""
    torch.manual_seed(0)
    merged, plain = (kind((4, 6, 8), 16, 3).double() for kind in (MLPDecoder, PlainMLPDecoder))
    merged.load_state_dict(plain.state_dict())
    maps = [
        torch.randn(2, dim, side, side + 1, dtype=torch.float64, requires_grad=True)
        for dim, side in ((4, 12), (6, 6), (8, 3))
    ]
    ours, theirs = merged(maps), plain(maps)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    towards = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, [*maps, *merged.parameters()], towards),
        torch.autograd.grad(theirs, [*maps, *plain.parameters()], towards),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_patch_classify_expands_normalises_and_classifies():
    """The last layers of DAE-Former, arXiv 2212.13504, one after the other, and their gradients."""
    torch.manual_seed(0)
    dim, out_dim, factor, classes, (h, w) = 6, 5, 2, 3, (2, 3)
    head = PatchClassify(dim, out_dim, factor, classes).double()
    for weight in (head.norm.weight, head.norm.bias):
        torch.nn.init.normal_(weight)
    x = torch.randn(2, h * w, dim, dtype=torch.float64)

    expanded = head.expand(x).view(2, h, w, factor, factor, out_dim).transpose(2, 3)
    expected = head.classify(head.norm(expanded)).reshape(2, h * w * factor**2, classes)
    logits = head(x, (h, w))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)

    towards = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(logits, list(head.parameters()), towards),
        torch.autograd.grad(expected, list(head.parameters()), towards),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
