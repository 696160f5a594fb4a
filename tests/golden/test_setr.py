"""SETR computes what the published implementation computes, on the same weights."""

import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.models.pretrained import load_tensors
from attnseg.models.setr import SETR
from tests.golden.recipe import Golden

TOLERANCE = 1e-5
SMALL = {
    "size": "tiny",
    "dim": 96,
    "depth": 4,
    "num_heads": 4,
    "patch_size": 16,
    "head_channels": 256,
}


def largest_difference(head: str, small: bool) -> float:
    golden = Golden(f"setr_{head}_small" if small else f"setr_{head}")
    _, channels, *size = golden.image.shape
    options = SMALL if small else {"size": "large"}
    model = SETR(
        in_channels=channels,
        num_classes=9,
        image_size=(size[0], size[1]),
        attn=Attention,
        head=head,
        auxiliary=False,
        **options,
    )
    report = load_tensors(model, golden.weights)
    assert report.fresh == []
    unused = {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    assert set(report.dropped) == (unused | {"backbone.cls_token"} if head == "mla" else unused)
    with torch.no_grad():
        return golden.largest_difference(model.eval()(golden.image))


@pytest.mark.parametrize(
    "small",
    [pytest.param(True, id="small"), pytest.param(False, id="large", marks=pytest.mark.full)],
)
@pytest.mark.parametrize("head", ["naive", "pup", "mla"])
def test_logits_equal_the_published_ones(head, small, record_property):
    difference = largest_difference(head, small)
    record_property("largest_difference", difference)
    print(f"SETR {head} {'small' if small else 'large'}: {difference:.1e}")
    assert difference <= TOLERANCE
