"""Attentions and what replaces them, alone and in their blocks, against published outputs."""

import pytest
import torch
import torch.nn.functional as F

from attnseg.attention.attention import Attention
from attnseg.attention.focal import FocalModulation
from attnseg.attention.pool import Pool
from tests.golden.recipe import Golden

ROLES = {"xcit": "qkv", "davit": "vqk"}  # what the published projection's thirds are called here


def tolerance(golden):
    return 5 * float(golden.stored["float32_vs_float64_maxabs"])


def compare(golden, out):
    """Print and bound the largest difference to the stored output, which is whole."""
    apart = float((out - torch.from_numpy(golden.stored["logits"]).view_as(out)).abs().max())
    print(f"{apart:.1e}, allowed {tolerance(golden):.1e}")
    assert apart <= tolerance(golden)


def below(weights, prefix):
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def channel_attention(weights, mixing, heads):
    """An attention with the weights of a published one; its input has 2-D weights throughout."""
    dim = weights["proj.bias"].numel()
    attention = Attention(dim, heads, mixing=mixing)
    state = {f"out.{k.removeprefix('proj.')}": v for k, v in weights.items() if "proj." in k}
    for kind in ("weight", "bias"):
        roles = ROLES["xcit" if mixing == "transpose" else "davit"]
        for role, part in zip(roles, weights[f"qkv.{kind}"].chunk(3), strict=True):
            state[f"project.{role}.linear.{kind}"] = part
    if "temperature" in weights:
        state["mix.temperature"] = weights["temperature"]
    attention.load_state_dict(state)
    return attention


def focal(weights, **options):
    """Focal modulation with published weights."""
    levels = sum("focal_layers" in name for name in weights)
    window = weights["focal_layers.0.0.weight"].shape[-1]
    mixer = FocalModulation(weights["h.bias"].numel(), 1, levels=levels, window=window, **options)
    ours = {"f": "project", "h": "modulate", "proj": "out", "ln": "norm"}
    state = {}
    for name, value in weights.items():
        first, *_, kind = name.split(".")
        if first == "focal_layers":
            state[f"contexts.{name.split('.')[1]}.{kind}"] = value
        else:
            state[f"{ours[first]}.{kind}"] = value[..., 0, 0] if value.ndim == 4 else value
    mixer.load_state_dict(state)
    return mixer


def mlp(weights, x):
    hidden = F.linear(x, weights["mlp.fc1.weight"].flatten(1), weights["mlp.fc1.bias"])
    return F.linear(F.gelu(hidden), weights["mlp.fc2.weight"].flatten(1), weights["mlp.fc2.bias"])


def norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


@pytest.mark.parametrize(
    ("name", "mixing", "heads", "grid"),
    [
        ("xcit_xca_10x12", "transpose", 4, (10, 12)),
        ("davit_channel_attention_14x14", "channel_group", 3, (14, 14)),
    ],
)
@torch.inference_mode()
def test_channel_attentions(name, mixing, heads, grid):
    golden = Golden(name)
    attention = channel_attention(golden.weights, mixing, heads)
    compare(golden, attention(golden.image, grid))


@torch.inference_mode()
def test_channel_block_of_davit():
    golden = Golden("davit_channel_block_9x12")
    weights, grid = golden.weights, (9, 12)

    def add_positions(x, name):
        patches = x.mT.unflatten(2, grid)
        weight, bias = weights[f"{name}.proj.weight"], weights[f"{name}.proj.bias"]
        return x + F.conv2d(patches, weight, bias, padding=1, groups=len(bias)).flatten(2).mT

    attention = channel_attention(below(weights, "attn."), "channel_group", 3)
    x = add_positions(golden.image, "cpe.0")
    x = add_positions(x + attention(norm(weights, "norm1", x), grid), "cpe.1")
    compare(golden, x + mlp(weights, norm(weights, "norm2", x)))


@torch.inference_mode()
def test_focal_modulation():
    golden = Golden("focal_modulation_l3_w3_postln_10x12")
    mixer = focal(golden.weights, postln=True, normalize=True)
    compare(golden, mixer(golden.image.flatten(1, 2), (10, 12)))


@pytest.mark.parametrize(
    ("name", "after"),
    [("focal_block_l2_w3_10x12", False), ("focal_block_l3_w3_postln_10x12", True)],
)
@torch.inference_mode()
def test_focal_blocks(name, after):
    """With the norms before or after both branches."""
    golden = Golden(name)
    weights, x = golden.weights, golden.image
    mixer = focal(below(weights, "modulation."))
    if after:
        x = x + norm(weights, "norm1", mixer(x, (10, 12)))
        out = x + norm(weights, "norm2", mlp(weights, x))
    else:
        x = x + mixer(norm(weights, "norm1", x), (10, 12))
        out = x + mlp(weights, norm(weights, "norm2", x))
    compare(golden, out)


@pytest.mark.parametrize("name", ["poolformer_block_12x14", "poolformer_block_noscale_12x14"])
@torch.inference_mode()
def test_pooling_blocks(name):
    golden = Golden(name)
    weights, grid = golden.weights, (12, 14)
    mixer = Pool(64, 1)

    def group_norm(name, x):
        out = F.group_norm(x.mT, 1, weights[f"{name}.weight"], weights[f"{name}.bias"])
        return out.mT

    x = golden.image.flatten(2).mT
    x = x + weights.get("layer_scale_1", 1) * mixer(group_norm("norm1", x), grid)
    x = x + weights.get("layer_scale_2", 1) * mlp(weights, group_norm("norm2", x))
    compare(golden, x.mT.unflatten(2, grid))
