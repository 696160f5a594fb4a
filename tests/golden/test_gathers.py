"""Attentions with a gather compute what the published modules compute, on the same weights."""

import numpy as np
import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.layers.tokens import Place
from tests.golden.recipe import Golden


def tolerance(golden):
    """Five times the file's own rounding error, which is measured against float64."""
    return max(2e-6, 5 * float(golden.stored["float32_vs_float64_maxabs"]))


def load_projections(attention, weights):
    """Load the projections from the published names, with `kv` joint or apart."""
    flat = {name: value.flatten(1) if value.ndim == 4 else value for name, value in weights.items()}
    joint = {
        f"{role}.{kind}": part
        for kind in ("weight", "bias")
        if f"kv.{kind}" in flat
        for role, part in zip("kv", flat[f"kv.{kind}"].chunk(2), strict=True)
    }
    for role in "qkv":
        for kind in ("weight", "bias"):
            names = (f"{role}.{kind}", f"proj_{role}.{kind}")
            value = next(v for v in map({**flat, **joint}.get, names) if v is not None)
            getattr(attention.project[role].linear, kind).data.copy_(value)
    for kind in ("weight", "bias"):
        out = flat.get(f"proj.{kind}", flat.get(f"proj_out.{kind}"))
        getattr(attention.out, kind).data.copy_(out)


def report_difference(golden, tokens, name):
    stride = int(golden.stored["stride"])
    assert tuple(tokens.shape) == tuple(golden.stored["logits_full_shape"])
    difference = float(np.abs(tokens[:, ::stride].numpy() - golden.stored["logits"]).max())
    print(f"{name}: {difference:.1e} of {tolerance(golden):.1e}")
    return difference


@pytest.mark.parametrize(
    ("name", "heads", "grid", "gather", "options"),
    [
        ("pvt_sra_h1_r8_32x32", 1, (32, 32), "spatial_reduction", {"ratio": 8}),
        ("pvt_sra_h2_r4_16x16", 2, (16, 16), "spatial_reduction", {"ratio": 4}),
        ("pvt_sra_h2_r2_16x24", 2, (16, 24), "spatial_reduction", {"ratio": 2}),
        ("missformer_esa_h2_r4_16x24", 2, (16, 24), "spatial_reduction", {"ratio": 4}),
        ("pvt2_linear_sra_h2_16x24", 2, (16, 24), "pooled_reduction", {}),
    ],
)
def test_reduced_attention_equals_the_published_one(name, heads, grid, gather, options):
    golden = Golden(name)
    attention = Attention(64, heads, gather=gather, gather_options=options).eval()
    load_projections(attention, golden.weights)
    reduce = attention.gather.conv if gather == "spatial_reduction" else attention.gather.linear
    for kind in ("weight", "bias"):
        weight = golden.weights[f"sr.{kind}"]
        getattr(reduce, kind).data.copy_(weight.view_as(getattr(reduce, kind)))
        getattr(attention.gather.norm, kind).data.copy_(golden.weights[f"norm.{kind}"])
    with torch.no_grad():
        tokens = attention(golden.image, grid)
    assert report_difference(golden, tokens, name) <= tolerance(golden)


@pytest.mark.parametrize(
    ("name", "dim", "heads", "grid"),
    [
        ("dat_deformable_10x14", 96, 6, (10, 14)),
        ("dat_deformable_stage3_14x14", 384, 12, (14, 14)),
    ],
)
def test_deformable_attention_equals_the_published_one(name, dim, heads, grid):
    golden = Golden(name)
    attention = Attention(
        dim,
        heads,
        place=Place(grid=grid),
        mixing="relative_softmax",
        gather="deformable",
        gather_options={"groups": 3},
    ).eval()
    load_projections(attention, golden.weights)
    offsets = {"conv": "0", "norm": "1.norm", "linear": "3"}
    for ours, theirs in offsets.items():
        for kind, parameter in getattr(attention.gather, ours).named_parameters():
            weight = golden.weights[f"conv_offset.{theirs}.{kind}"]
            parameter.data.copy_(weight.view_as(parameter))
    attention.mix.table.data.copy_(golden.weights["rpe_table"])
    layouts = []
    attention.mix.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[3]))
    with torch.no_grad():
        mapped = attention(golden.image.flatten(2).mT, grid).mT.unflatten(2, grid)
    stride = int(golden.stored["stride"])
    cut = mapped[:, :, ::stride, ::stride].numpy()
    difference = float(np.abs(cut - golden.stored["logits"]).max())
    points = (layouts[0].positions - 0.5) / (torch.tensor(grid) - 1) * 2 - 1
    moved = float((points.flatten() - torch.from_numpy(golden.stored["pos"]).flatten()).abs().max())
    print(f"{name}: {difference:.1e} of {tolerance(golden):.1e}, places {moved:.1e}")
    assert difference <= tolerance(golden)
    assert moved <= tolerance(golden)
