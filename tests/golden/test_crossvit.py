"""CrossViT computes what the published classifier computes, on the same weights."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from attnseg.attention.attention import Attention
from attnseg.config import cost
from attnseg.models.crossvit import (
    SIZES,
    ClassTokenFusion,
    CrossViT,
    CrossViTClassifier,
    CrossViTSize,
    MultiScaleBlock,
)
from attnseg.models.pretrained import load_tensors
from tests.golden.recipe import Golden

BRANCHES = ((2, 26, 48), (2, 17, 96))
GRIDS = [(5, 5), (4, 4)]


def within_tolerance(golden, ours, key="logits"):
    assert tuple(ours.shape) == golden.stored[key].shape
    difference = np.abs(ours.numpy() - golden.stored[key]).max()
    tolerance = max(2e-6, 5 * float(golden.stored["float32_vs_float64_maxabs"]))
    print(f"{golden.name} {key}: {difference:.1e} of {tolerance:.1e}")
    return difference <= tolerance


def classifier(golden):
    size = CrossViTSize((24, 48), 3, (1, 2), 2)
    model = CrossViTClassifier(3, 10, Attention, size, (64, 64), GRIDS).eval()
    report = load_tensors(model, golden.weights)
    assert (report.fresh, report.dropped, report.resized) == ([], {}, {})
    return model


def test_class_logits_equal_the_published_ones():
    golden = Golden("crossvit_small")
    with torch.no_grad():
        assert within_tolerance(golden, classifier(golden)(golden.image))


def test_a_block_of_both_branches_equals_the_published_one():
    golden = Golden("crossvit_multiscale_block")
    size = CrossViTSize((48, 96), 3, (1, 2), 1)
    model = CrossViTClassifier(3, 10, Attention, size, (64, 64), GRIDS).eval()
    report = load_tensors(model, {f"blocks.0.{n}": v for n, v in golden.weights.items()})
    assert not any(name.startswith("encoder.blocks.") for name in report.fresh)
    parts = golden.image.split([int(np.prod(shape)) for shape in BRANCHES])
    tokens = [part.view(shape) for part, shape in zip(parts, BRANCHES, strict=True)]
    with torch.no_grad():
        small, large = model.encoder.blocks[0](tokens, GRIDS)
    assert within_tolerance(golden, small)
    assert within_tolerance(golden, large, "large")


class Bare(ClassTokenFusion):
    """The attention alone: the token already has the other branch's width."""

    def __init__(self):
        super().__init__(96, 96, Attention(96, 3))
        self.project = self.revert = nn.Identity()


def test_cross_attention_equals_the_published_one():
    golden = Golden("crossvit_cross_attention_block")
    fusion, ours = Bare().eval(), {}
    for name, value in golden.weights.items():
        kind = name.rpartition(".")[2]
        if name.startswith("attn.w"):
            ours[f"attn.project.{name[6]}.linear.{kind}"] = value
        else:
            ours[name.replace("norm1", "norm").replace("proj", "out")] = value
    fusion.load_state_dict(ours)
    with torch.no_grad():
        fused = fusion(golden.image[:, :1], golden.image[:, 1:], (5, 5))
    assert within_tolerance(golden, fused)


def test_encoder_of_the_segmentation_model_takes_the_same_weights():
    """Of the tiny size, whose blocks the file of one block fits."""
    golden = Golden("crossvit_multiscale_block")
    model = CrossViT(
        in_channels=3, num_classes=2, image_size=(60, 64), attn=Attention, cross_attn=Attention,
        size="tiny",
    )  # fmt: skip
    weights = {f"blocks.0.{n}": v for n, v in golden.weights.items() if "blocks.1.1" not in n}
    report = load_tensors(model, {**weights, "head.0.weight": torch.zeros(10, 48)})
    assert report.dropped == {
        "head.0.weight": "it belongs to the classifier of the published model"
    }
    assert not any(name.startswith("encoder.blocks.") for name in report.fresh)


@pytest.mark.parametrize(
    ("size", "parameters", "gigamacs"),
    [("crossvit-ti", 7_014_800, 1.6), ("crossvit-s", 26_856_272, 5.6), ("crossvit-b", None, 21.2)],
)
def test_costs_are_the_published_numbers(size, parameters, gigamacs):
    """Parameters as ports of the weights count them, MACs as timm's model cards do."""
    with torch.device("meta"):
        model = CrossViTClassifier(
            3, 1000, Attention, SIZES[size], (240, 240), [(20, 20), (14, 14)]
        )
    total = sum(p.numel() for p in model.parameters())
    macs = cost.count_macs(model, (3, 240, 240))
    print(f"{size}: {total:,} parameters, {macs / 1e9:.3f} GMACs")
    assert parameters in (None, total)
    assert macs / 1e9 == pytest.approx(gigamacs, abs=0.06)
    assert all(m.eps == 1e-6 for m in model.modules() if isinstance(m, nn.LayerNorm))


def test_the_exchange_sees_both_branches_before_it_changes_either():
    torch.manual_seed(0)
    size = CrossViTSize((8, 12), 2, (0, 0), 1)
    block = MultiScaleBlock(size, Attention, Attention, 4.0, GRIDS, itertools.count()).eval()
    tokens = [torch.randn(1, 26, 8), torch.randn(1, 17, 12)]
    small, large = block(tokens, GRIDS)
    assert torch.equal(small[:, 1:], tokens[0][:, 1:])
    assert torch.equal(large[:, 1:], tokens[1][:, 1:])
    again = block.fusions[1](tokens[1][:, :1], tokens[0][:, 1:], GRIDS[0])
    assert torch.equal(large[:, :1], again)
