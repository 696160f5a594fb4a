"""The plan of a U-Net follows from the image's size and spacing, as nnU-Net's does."""

import pytest
import torch

from attnseg.models.unet import UNet, plan_stages
from attnseg.models.unet_resenc import UNetResEnc

SQUARE, ROW = (3, 3), (1, 3)


@pytest.mark.parametrize(
    ("image_size", "stages"),
    [((128, 128), 6), ((224, 224), 6), ((512, 512), 8), ((12, 12), 2), ((7, 7), 1), ((64, 96), 5)],
)
def test_axes_are_halved_down_to_four_places(image_size, stages):
    plans = plan_stages(image_size, (1.0, 1.0))
    assert len(plans) == stages
    assert plans[0].stride == (1, 1)
    assert {plan.kernel for plan in plans} == {SQUARE}
    assert all(plan.stride == (2, 2) for plan in plans[1:])


def test_an_axis_that_is_too_short_is_left_alone():
    """And the last one that is long enough needs 12 places."""
    assert [plan.stride for plan in plan_stages((6, 24), (1.0, 1.0))] == [(1, 1), (1, 2), (1, 2)]
    assert [plan.stride for plan in plan_stages((6, 11), (1.0, 1.0))] == [(1, 1)]


def test_thick_rows_are_halved_and_convolved_later():
    plans = plan_stages((64, 64), (5.0, 1.0))
    strides = [(1, 1), (1, 2), (1, 2), (2, 2), (2, 2), (2, 1)]
    assert [plan.stride for plan in plans] == strides
    assert [plan.kernel for plan in plans] == [ROW, ROW, SQUARE, SQUARE, SQUARE, SQUARE]


@pytest.mark.parametrize("kind", [UNet, UNetResEnc])
@pytest.mark.parametrize("size", [(33, 47), (3, 80), (64, 32)])
def test_images_of_other_sizes(kind, size):
    net = kind(in_channels=2, num_classes=3, image_size=(32, 48), size="tiny", spacing=(2.5, 1.0))
    outputs = net.training_outputs(torch.randn(1, 2, *size))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, *size)] * len(outputs)
    with pytest.raises(ValueError, match="image 4x8 leaves a single place"):
        net(torch.randn(1, 2, 4, 8))


def test_numbers_that_do_not_fit():
    for options, message in (
        ({"size": "huge"}, "unknown size 'huge'; choose one of tiny, base"),
        ({"features": (8,)}, "1 stages do not fit images of 32x48, which allow 4"),
        ({"features": (8,) * 5}, "5 stages do not fit"),
        ({"features": (8, 0)}, "features 0 must be 1 or more"),
        ({"spacing": (0.0, 1.0)}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            UNet(in_channels=1, num_classes=2, image_size=(32, 48), **options)


def test_blocks_begin_as_their_shortcut():
    net = UNetResEnc(in_channels=1, num_classes=2, image_size=(32, 32), size="tiny", blocks=(1, 2))
    block = net.encoder[1][1]
    x = torch.randn(1, 16, 8, 8).relu()
    assert torch.equal(block(x), x)
