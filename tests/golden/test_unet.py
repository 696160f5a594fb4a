"""U-Nets compute what nnU-Net's architecture library computes, on the same weights."""

import pytest
import torch

from attnseg.models.pretrained import load_tensors
from attnseg.models.unet import UNet
from attnseg.models.unet_resenc import UNetResEnc
from tests.golden.recipe import Golden

KINDS = {"plain": UNet, "resenc": UNetResEnc}
SMALL = {"features": (16, 32, 64, 96)}


def make(kind, size, image_size, **options):
    return KINDS[kind](
        in_channels=1,
        num_classes=4,
        image_size=image_size,
        **(SMALL if size == "small" else {}),
        **options,
    ).eval()


@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_published_ones(kind, size):
    golden = Golden(f"unet_{kind}_{size}")
    model = make(kind, size, tuple(golden.image.shape[2:]))
    report = load_tensors(model, golden.weights)
    # The head of the coarsest stage, which has no weight in the published loss.
    assert report.dropped.keys() == {f"decoder.seg_layers.0.{k}" for k in ("weight", "bias")}
    assert report.fresh == []
    dead = sum(golden.weights[name].numel() for name in report.dropped)
    total = sum(p.numel() for p in model.parameters())
    assert total == int(golden.stored["param_count"]) - dead
    with torch.no_grad():
        difference = golden.largest_difference(model(golden.image))
    tolerance = 5 * float(golden.stored["float32_vs_float64_maxabs"])
    print(f"unet_{kind}_{size}: {difference:.1e}, allowed {tolerance:.1e}")
    assert difference <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_every_published_name_of_a_tensor_is_known(kind):
    """The published code registers most tensors three times: by role, by number, in the decoder."""
    golden = Golden(f"unet_{kind}_small")
    model = make(kind, "small", (64, 96))
    for name in golden.weights:
        numbered = name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        within = f"decoder.{numbered}" if numbered.startswith("encoder") else numbered
        ours = model.official_name(name)
        assert ours == model.official_name(numbered) == model.official_name(within)
        assert (ours in model.state_dict()) == (name not in {
            "decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"
        })  # fmt: skip
