"""Encoders of the hierarchical skeleton compute what Swin, PVT, FocalNet and DaViT compute."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnseg.attention.alternate import alternate_attentions
from attnseg.attention.attention import Attention
from attnseg.attention.focal import FocalModulation
from attnseg.attention.window import Window
from attnseg.config.budget import build_model
from attnseg.config.cost import count_macs
from attnseg.config.training import parse_config
from attnseg.models import hierarchical
from attnseg.models.hierarchical import (
    DESIGNS,
    SIZES,
    Design,
    Hierarchical,
    HierarchicalSize,
    PatchMerging,
)
from attnseg.models.pretrained import load_tensors
from tests.contracts.groups import compose
from tests.golden.recipe import Golden
from tests.golden.test_local import Padded

WINDOW = {"size": 4, "shift": True, "cut_to_grid": False}
PLAIN_WINDOW = {"size": 4, "bias": False}
REDUCED = partial(Attention, gather="spatial_reduction", gather_options={"ratio": [8, 4, 2, 1]})
NETWORKS = {  # size and attention
    "swin_dense_small": (
        HierarchicalSize("swin", (24, 48, 96, 192), (2, 2, 2, 2), (1, 2, 4, 8)),
        partial(Attention, mixing="window", mixing_options=WINDOW),
    ),
    "pvt2_small": (
        HierarchicalSize(
            "pvt_v2", (16, 32, 40, 64), (1, 1, 1, 1), (1, 2, 5, 8), mlp_factors=(2, 2, 1, 1)
        ),
        REDUCED,
    ),
    "focalnet_small": (
        HierarchicalSize("focal", (16, 32, 64, 128), (1, 1, 2, 1), (1, 1, 1, 1)),
        FocalModulation,
    ),
    "davit_small": (
        HierarchicalSize("davit", (16, 32, 48, 64), (2, 2, 2, 2), (1, 2, 3, 4)),
        partial(
            alternate_attentions,
            first=partial(Attention, mixing="window", mixing_options=PLAIN_WINDOW),
            second=partial(Attention, mixing="channel_group"),
        ),
    ),
}


def report_difference(golden, key, ours):
    """Print and bound the largest difference to an output, which is whole."""
    tolerance = max(2e-6, 5 * float(golden.stored["float32_vs_float64_maxabs"]))
    difference = float(np.abs(ours.numpy() - golden.stored[key]).max())
    print(f"{key}: {difference:.1e}, allowed {tolerance:.1e}")
    assert difference <= tolerance


def pad_windows(model):
    """Let windows attend to tokens of zeros, as the published code for images of any size does."""

    def multiple(grid):
        return tuple(-(-side // 4) * 4 for side in grid)

    class Filled(nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.attention = attention

        def forward(self, x, grid):
            return Padded(self.attention, multiple(grid))(x, grid)

    for stage in model.encoder:
        for block in stage.blocks:
            if isinstance(getattr(block.attn, "mix", None), Window):
                block.attn = Filled(block.attn)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_encoders_equal_the_published_ones(name, monkeypatch):
    golden = Golden(name)
    size, attn = NETWORKS[name]
    monkeypatch.setitem(hierarchical.SIZES, "golden", size)
    image_size = tuple(golden.image.shape[2:])
    model = Hierarchical(
        in_channels=3, num_classes=2, image_size=image_size, attn=attn, size="golden"
    ).eval()
    report = load_tensors(model, golden.weights)
    assert all(key.startswith("decoder.") for key in report.fresh)
    classifier = {"head.weight", "head.bias"}
    assert report.dropped.keys() == classifier & golden.weights.keys()
    pad_windows(model)
    norms = [unify[0] for unify in model.decoder.unify]
    x, maps = golden.image, []
    for stage in model.encoder:
        x = stage(x)
        maps.append(x)
    if name == "swin_dense_small":
        for key, norm, own in zip(
            ["stage0", "stage1", "stage2", "logits"], norms, maps, strict=True
        ):
            report_difference(golden, key, norm(own))
        return
    if name == "davit_small":  # It averages before the norm.
        features = norms[-1].norm(maps[-1].mean((2, 3)))
    elif name == "pvt2_small":
        features = maps[-1].mean((2, 3))
    else:
        features = norms[-1](maps[-1]).mean((2, 3))
    logits = F.linear(features, golden.weights["head.weight"], golden.weights["head.bias"])
    report_difference(golden, "logits", logits)


@torch.no_grad()
def test_patch_merging_equals_the_published_one():
    """On a grid of odd sides."""
    golden = Golden("swin_patch_merging_7x9")
    merging = PatchMerging(32, 64, 2)
    merging.load_state_dict(golden.weights)
    tokens, grid = merging(golden.image.mT.unflatten(2, (7, 9)))
    assert grid == (4, 5)
    report_difference(golden, "logits", tokens)


@pytest.mark.parametrize(
    ("name", "grid", "prefix", "size", "design"),
    [
        (
            "pvt_block_h2_r4_8x12",
            (8, 12),
            "block1.0",
            HierarchicalSize("pvt_v2", (64,), (1,), (2,), (4,), (1,)),
            Design(norm_eps=1e-6),  # without convolution in the MLP
        ),
        (
            "pvt2_block_h2_r4_8x12",
            (8, 12),
            "block1.0",
            HierarchicalSize("pvt_v2", (64,), (1,), (2,), (4,), (1,)),
            DESIGNS["pvt_v2"],
        ),
        (
            "davit_spatial_block_w7_9x12_pad",
            (9, 12),
            "main_blocks.0.0.0",
            HierarchicalSize("davit", (96,), (1,), (3,), (4,), (1,)),
            DESIGNS["davit"],
        ),
    ],
)
@torch.no_grad()
def test_blocks_equal_the_published_ones(name, grid, prefix, size, design, monkeypatch):
    golden = Golden(name)
    monkeypatch.setitem(hierarchical.SIZES, "golden", size)
    monkeypatch.setitem(hierarchical.DESIGNS, size.design, design)
    options = {"gather": "spatial_reduction", "gather_options": {"ratio": 4}}
    if size.design == "davit":
        options = {"mixing": "window", "mixing_options": {"size": 7, "bias": False}}
    model = Hierarchical(
        in_channels=3, num_classes=2, image_size=(64, 96), attn=partial(Attention, **options),
        size="golden",
    )  # fmt: skip
    report = load_tensors(model, {f"{prefix}.{k}": v for k, v in golden.weights.items()})
    assert report.dropped == {}
    (block,) = model.encoder[0].blocks
    assert not any(name.startswith("encoder.0.blocks") for name in report.fresh)
    if size.design == "davit":
        block.attn = Padded(block.attn, (14, 14))
    report_difference(golden, "logits", block(golden.image, grid))


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [
        ("swin_t", 28_288_354, 4.5),
        ("pvt_v2_b2", 25_362_856, 4.0),
        ("focal_t", 28_427_116, 4.4),
        ("davit_t", 28_360_168, 4.5),
    ],
)
def test_parameters_and_operations_are_the_published_numbers(name, parameters, gmacs):
    """Of the classifiers for ImageNet: with a norm, where stages end with none, and a head."""
    config = parse_config(compose(f"experiment={name}"))
    with torch.device("meta"):
        model = build_model(config.model, config.attn, 3, 2, (224, 224))
    encoder = nn.Sequential(*model.encoder)
    dim = SIZES[name].dims[-1]
    final_norm = 0 if DESIGNS[model.design].stage_norm else 2 * dim
    total = sum(p.numel() for p in encoder.parameters()) + final_norm + 1000 * (dim + 1)
    assert total == parameters
    assert count_macs(encoder, (3, 224, 224)) / 1e9 == pytest.approx(gmacs, abs=0.06)
