"""MISSFormer computes and learns what the published implementation does, on the same weights."""

from functools import partial

import numpy as np
import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.config import cost
from attnseg.layers.mix_transformer import MixFFN
from attnseg.models.missformer import MISSFormer, join_levels, split_levels
from attnseg.models.pretrained import load_tensors
from tests.golden.recipe import Golden
from tests.golden.training_step import check_training_step

PUBLISHED = 42_462_537
DEAD = 7_009_792  # parameters of the published code that no output depends on
DIMS = (64, 128, 320, 512)
GRIDS = ((56, 56), (28, 28), (14, 14), (7, 7))


def make(channels=3):
    return MISSFormer(
        in_channels=channels,
        num_classes=9,
        image_size=(224, 224),
        attn=partial(Attention, gather="spatial_reduction"),
        bridge_attn=Attention,
    )


@pytest.fixture(scope="module")
def certified():
    golden, model = Golden("missformer"), make()
    return golden, model, load_tensors(model, golden.weights)


def within_tolerance(golden, ours, key="logits"):
    """Compare tokens `[B, N, C]` or maps with a stored output, thinned as it is."""
    stride = int(golden.stored[f"{key}_stride" if key != "logits" else "stride"])
    assert tuple(ours.shape) == tuple(golden.stored[f"{key}_full_shape"])
    thinned = ours[:, ::stride] if ours.ndim == 3 else ours[:, :, ::stride, ::stride]
    difference = np.abs(thinned.numpy() - golden.stored[key]).max()
    tolerance = max(2e-6, 5 * float(golden.stored["float32_vs_float64_maxabs"]))
    print(f"{golden.name} {key}: {difference:.1e} of {tolerance:.1e}")
    return difference <= tolerance


def test_everything_is_loaded_and_what_is_not_is_explained(certified):
    golden, model, report = certified
    assert (report.fresh, report.resized) == ([], {})
    assert set(report.dropped.values()) == {"no output of the published code depends on it"}
    # The joint projections of keys and values have been split.
    dropped = {name.replace(".k.", ".kv.").replace(".v.", ".kv.") for name in report.dropped}
    assert dropped == set(golden.stored["no_gradient_names"])
    assert sum(golden.weights[name].numel() for name in dropped) == DEAD
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED - DEAD


def test_logits_equal_the_published_ones(certified):
    golden, model, _ = certified
    with torch.no_grad():
        logits = model.eval()(golden.image)
    assert within_tolerance(golden, logits)
    histogram = np.bincount(logits.argmax(1).flatten(), minlength=9)
    assert np.abs(histogram - golden.stored["argmax_hist"]).max() <= 2


def test_it_costs_less_than_the_published_code():
    with torch.device("meta"):
        model = make()
    # Published: 9.771, of which 1.773 are the second evaluation of each fc1.
    assert cost.count_macs(model, (3, 224, 224)) == pytest.approx(7.998e9, rel=1e-4)


def test_a_training_step_has_the_published_loss_and_gradients(certified):
    golden, model, _ = certified
    check_training_step(golden.image, model, "traingrad_missformer.npz")


def bridge_inputs(golden):
    """The four maps of a file, as tokens of each level."""
    shapes = [tuple(map(int, str(shape).split(","))) for shape in golden.stored["input_parts"]]
    drawn = golden.image.split([int(np.prod(shape)) for shape in shapes])
    return [part.view(shape).flatten(2).mT for part, shape in zip(drawn, shapes, strict=True)]


def load_bridge(golden, published, ours):
    model = make().eval()
    report = load_tensors(model, {published + name: v for name, v in golden.weights.items()})
    assert not any(name.startswith(ours) for name in report.fresh)
    return model


def test_the_bridge_equals_the_published_one():
    golden = Golden("missformer_bridge")
    model = load_bridge(golden, "bridge.", "bridge.")
    with torch.no_grad():
        levels = model.bridge_levels(bridge_inputs(golden), GRIDS[-1])
    maps = [level.mT.unflatten(2, grid) for level, grid in zip(levels, GRIDS, strict=True)]
    for key, ours in zip(("logits", "map2", "map3", "map4"), maps, strict=True):
        assert within_tolerance(golden, ours, key)


def test_a_layer_of_the_bridge_equals_the_published_one():
    golden = Golden("missformer_bridge_layer")
    model = load_bridge(golden, "bridge.bridge_layer1.", "bridge.0.")
    with torch.no_grad():
        joined = model.bridge[0](join_levels(bridge_inputs(golden), GRIDS[-1], 64), GRIDS[-1])
    levels = split_levels(joined, GRIDS[-1], DIMS)
    assert within_tolerance(golden, torch.cat([x.reshape(1, -1, 64) for x in levels], 1))


def test_the_feed_forward_network_equals_the_published_one():
    golden = Golden("missformer_mixffn_8x12")
    mlp = MixFFN(64, 256).eval()
    renamed = {n.replace("dwconv.dw", "dw"): v for n, v in golden.weights.items()}
    renamed = {n.replace("norm1", "norm"): v for n, v in renamed.items()}
    mlp.load_state_dict({n: renamed[n] for n in mlp.state_dict()})
    with torch.no_grad():
        assert within_tolerance(golden, mlp(golden.image, (8, 12)))
