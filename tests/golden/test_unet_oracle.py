"""U-Nets beside nnU-Net's architecture library itself, where it is installed."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attnseg.models.pretrained import load_tensors
from attnseg.models.unet import UNet, plan_stages
from attnseg.models.unet_resenc import UNetResEnc

unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
pytestmark = pytest.mark.slow
IMAGE = (1, 64, 96)


def published(kind, image, spacing):
    """The library's network for our plan; weights as it initialises them."""
    plans = plan_stages(image[1:], spacing)
    stages = len(plans)
    residual = kind is UNetResEnc
    blocks = {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6, 6, 6][:stages]}
    make = unet.ResidualEncoderUNet if residual else unet.PlainConvUNet
    return make(
        input_channels=image[0],
        n_stages=stages,
        features_per_stage=[min(32 * 2**n, 512) for n in range(stages)],
        conv_op=nn.Conv2d,
        kernel_sizes=[list(plan.kernel) for plan in plans],
        strides=[list(plan.stride) for plan in plans],
        **(blocks if residual else {"n_conv_per_stage": [2] * stages}),
        num_classes=4,
        n_conv_per_stage_decoder=[1 if residual else 2] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def count_macs(net, image):
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *image, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (5.0, 1.0)])
@pytest.mark.parametrize("kind", [UNet, UNetResEnc])
def test_same_plan_same_weights_same_outputs(kind, spacing):
    """Of every supervised stage; the library's coarsest head is not ours."""
    torch.manual_seed(0)
    theirs = published(kind, IMAGE, spacing).eval()
    ours = kind(in_channels=1, num_classes=4, image_size=IMAGE[1:], spacing=spacing).eval()
    report = load_tensors(ours, theirs.state_dict())
    assert report.fresh == []
    assert {name.rpartition(".")[0] for name in report.dropped} == {"decoder.seg_layers.0"}
    image = torch.randn(2, *IMAGE)
    with torch.no_grad():
        wanted = theirs(image)[: len(ours.auxiliary_classify) + 1]
        finest, *coarser = ours._decode(image)
        outputs = [ours.classify(finest)]
        pairs = zip(ours.auxiliary_classify, coarser, strict=False)
        outputs += [classify(x) for classify, x in pairs]
    assert [o.shape for o in outputs] == [w.shape for w in wanted]
    differences = [float((o - w).abs().max()) for o, w in zip(outputs, wanted, strict=True)]
    print(f"{kind.__name__}, spacing {spacing}: {max(differences):.1e}")
    assert max(differences) < 1e-4


@pytest.mark.parametrize("side", [128, 224, 512])
@pytest.mark.parametrize("kind", [UNet, UNetResEnc])
def test_same_parameters_and_operations(kind, side):
    image = (1, side, side)
    with torch.device("meta"):
        theirs = published(kind, image, (1.0, 1.0)).eval()
        ours = kind(in_channels=1, num_classes=4, image_size=(side, side)).eval()
    theirs.decoder.deep_supervision = False
    dead = sum(p.numel() for p in theirs.decoder.seg_layers[0].parameters())
    counts = [sum(p.numel() for p in net.parameters()) for net in (ours, theirs)]
    macs = [count_macs(net, image) for net in (ours, theirs)]
    print(f"{kind.__name__} {side}: {counts[1]:,} parameters, {macs[1] / 1e9:.3f} GMACs")
    assert counts[0] == counts[1] - dead
    assert macs[0] == macs[1]
