"""CvT-13 computes what the published classifier computes, on the same weights."""

import numpy as np
import pytest
import torch
from torch import nn

from attnseg.attention.attention import Attention
from attnseg.models.cvt import CvT, CvTClassifier
from attnseg.models.pretrained import load_tensors
from tests.golden.recipe import Golden

TOLERANCE = 1e-5
# The last map is un-normalised, up to 13.5; the file's own rounding is 1.1e-5 against float64.
MAP_TOLERANCES = (1e-5, 1e-5, 5e-5)


@pytest.fixture(scope="module")
def certified():
    golden = Golden("cvt13")
    model = CvTClassifier(3, 1000, Attention).eval()
    report = load_tensors(model, golden.weights)
    assert (report.fresh, report.dropped) == ([], {})
    return golden, model


def test_class_logits_equal_the_published_ones(certified):
    golden, model = certified
    with torch.no_grad():
        difference = np.abs(model(golden.image).numpy() - golden.stored["logits"]).max()
    print(f"cvt13 class logits: {difference:.1e}")
    assert difference <= TOLERANCE


def test_stage_maps_equal_the_published_ones(certified):
    golden, model = certified
    with torch.no_grad():
        maps, cls_token = model.encoder(golden.image)
    for i, ours in enumerate(maps):
        stride = int(golden.stored[f"stage{i}_stride"])
        assert tuple(ours.shape) == tuple(golden.stored[f"stage{i}_full_shape"])
        difference = np.abs(
            ours[:, :, ::stride, ::stride].numpy() - golden.stored[f"stage{i}"]
        ).max()
        print(f"cvt13 stage {i}: {difference:.1e}")
        assert difference <= MAP_TOLERANCES[i]
    assert np.abs(cls_token.numpy() - golden.stored["stage2_cls"]).max() <= TOLERANCE


def test_encoder_of_the_segmentation_model_takes_the_same_weights(certified):
    golden, classifier = certified
    model = CvT(in_channels=3, num_classes=2, image_size=(224, 224), attn=Attention).eval()
    report = load_tensors(model, golden.weights)
    assert {name.split(".")[0] for name in report.fresh} == {"decoder"}
    assert {name.split(".")[0] for name in report.dropped} == {"norm", "head"}
    image = golden.image[:, :, :64, :96]
    with torch.no_grad():
        for a, b in zip(model.encoder(image)[0], classifier.encoder(image)[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("size", "millions"), [("cvt-13", 19.997), ("cvt-21", 31.62)])
def test_parameters_are_the_published_number(size, millions):
    with torch.device("meta"):
        model = CvTClassifier(3, 1000, Attention, size)
    total = sum(p.numel() for p in model.parameters()) / 1e6
    assert total == pytest.approx(millions, abs=0.005)
    assert all(m.eps == 1e-5 for m in model.modules() if isinstance(m, nn.LayerNorm))
