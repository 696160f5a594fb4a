"""Decoders compute what their papers write, in whatever order."""

import torch
import torch.nn.functional as F

from attnseg.models.cvt import MLPDecoder


def test_mlp_decoder_is_segformers():
    """Equation 4 of arXiv 2105.15203: unify, resize, concatenate, fuse, classify."""
    torch.manual_seed(0)
    decoder = MLPDecoder((4, 6, 8), 16, 3).eval()
    maps = [torch.randn(2, dim, side, side + 1) for dim, side in ((4, 12), (6, 6), (8, 3))]
    unified = [unify(x) for unify, x in zip(decoder.unify, maps, strict=True)]
    resized = [
        F.interpolate(x, size=(12, 13), mode="bilinear", align_corners=False) for x in unified
    ]
    expected = decoder.classify(decoder.fuse(torch.cat(resized, 1)))
    torch.testing.assert_close(decoder(maps), expected, rtol=0, atol=1e-6)
