"""TransUNet computes what the published implementation computes, on the same weights."""

import pytest
import torch
from torch import nn

from attnseg.attention.attention import Attention
from attnseg.layers.resnetv2 import StdConv2d
from attnseg.models.pretrained import load_tensors
from attnseg.models.transunet import TransUNet
from tests.golden.recipe import Golden

TOLERANCE = 1e-5
FILES = {
    "transunet_r50_vitb16": {},
    "transunet_r50_vitb16_64px": {},
    "transunet_vitb16": {"hybrid": False, "n_skip": 0},
}


def make(golden: Golden, **options) -> TransUNet:
    _, channels, *size = golden.image.shape
    return TransUNet(
        in_channels=channels,
        num_classes=9,
        image_size=(size[0], size[1]),
        attn=Attention,
        **options,
    )


@pytest.mark.parametrize("name", FILES)
def test_logits_equal_the_published_ones(name):
    golden = Golden(name)
    model = make(golden, **FILES[name])
    report = load_tensors(model, golden.weights)
    assert (report.fresh, report.dropped) == ([], {})
    with torch.no_grad():
        difference = golden.largest_difference(model.eval()(golden.image))
    print(f"{name}: {difference:.1e}")
    assert difference <= TOLERANCE


def test_parameters_are_the_published_number():
    with torch.device("meta"):
        model = TransUNet(in_channels=3, num_classes=9, image_size=(224, 224), attn=Attention)
    assert sum(p.numel() for p in model.parameters()) == 105_277_081


def test_what_logits_cannot_show():
    """Epsilons and the biased variance change the output by less than float32's noise."""
    model = make(Golden("transunet_r50_vitb16_64px"))
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.GroupNorm)}
    shortcuts = {n: m for n, m in norms.items() if "shortcut" in n}
    assert len(shortcuts) == 3
    for name, norm in norms.items():
        expected = (1e-5, norm.num_channels) if name in shortcuts else (1e-6, 32)
        assert (norm.eps, norm.num_groups) == expected, name
    layer_norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert len(layer_norms) == 25
    assert all(norm.eps == 1e-6 for norm in layer_norms)
    conv = StdConv2d(1, 1, 1)  # a kernel of one value: its unbiased variance does not exist
    assert conv(torch.ones(1, 1, 1, 1)).isfinite().all()
