"""What every model promises, with every attention: all found by glob."""

import re

import pytest
import torch

from attnseg.attention.attention import SHARINGS
from attnseg.config import schema
from attnseg.config.build import ATTENTION, build, factory
from tests.contracts.groups import compose, names

MIXINGS = ("softmax", "positional_softmax", "efficient", "transpose")
PAIRS = [(model, attn) for model in names("model") for attn in names("attn")]
IDS = ["-".join(pair) for pair in PAIRS]
SIZE = (32, 48)


def make(model: str, attn: str, channels: int = 1, classes: int = 3, options: tuple[str, ...] = ()):
    config = schema.check(compose(f"model={model}", f"attn={attn}", "model.size=tiny", *options))
    torch.manual_seed(0)
    return build(
        "model",
        config.model,
        in_channels=channels,
        num_classes=classes,
        image_size=SIZE,
        attn=factory("attn", config.attn, ATTENTION),
    )


def test_every_pair_is_here():
    assert len(PAIRS) >= 20


def assert_alive(net):
    """Every parameter of a network gets a finite gradient from its training outputs."""
    net.train()
    outputs = net.training_outputs(torch.randn(2, 1, *SIZE))
    # Squares: a sum would not see what a softmax or a norm after it cancels.
    sum(output.square().mean() for output in outputs).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{name} is dead"
        assert parameter.grad.isfinite().all(), name
        # A bias before batch normalisation has a gradient of rounding errors only.
        assert parameter.grad.abs().max() > 0, f"{name} never moves"


@pytest.mark.parametrize(("model", "attn"), PAIRS, ids=IDS)
def test_every_parameter_has_a_finite_gradient(model, attn):
    assert_alive(make(model, attn))


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("model", names("model"))
def test_any_sharing_goes_with_any_mixing(model, sharing, mixing):
    net = make(model, "qkv", options=(f"attn.sharing={sharing}", f"attn.mixing={mixing}"))
    assert_alive(net)
    net.eval()
    images = torch.randn(2, 1, *SIZE)
    with torch.inference_mode():
        together, alone = net(images), net(images[:1])
    assert together.shape == (2, 3, *SIZE)
    assert (together[:1] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("channel", names("attn"))
@pytest.mark.parametrize("fusion", ["sequential", "additive", "concatenation"])
def test_dae_former_has_a_site_and_a_fusion_of_its_own(fusion, channel):
    options = (f"model.fusion={fusion}", f"attn@model.channel_attn={channel}")
    assert_alive(make("dae_former", "efficient", options=options))


@pytest.mark.parametrize("decoder", ["mlp", "fpn"])
@pytest.mark.parametrize("stride", [1, 2])
def test_cvt_has_two_decoders_and_any_stride(decoder, stride):
    options = (f"model.decoder={decoder}", f"model.stride_kv={stride}")
    assert_alive(make("cvt", "kv_pos", options=options))


@pytest.mark.parametrize("options", [("model.hybrid=false", "model.n_skip=0"), ("model.n_skip=1",)])
def test_transunet_with_fewer_skips_and_without_resnet(options):
    assert_alive(make("transunet", "kv", options=options))


@pytest.mark.parametrize(("model", "attn"), PAIRS, ids=IDS)
def test_exports_as_one_graph_that_computes_the_same(model, attn):
    net = make(model, attn).eval()
    image = torch.randn(2, 1, *SIZE)
    exported = torch.export.export(net, (image,)).module()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.inference_mode():
        wanted = net(image)
        assert torch.allclose(exported(image), wanted, atol=1e-5)
        assert torch.allclose(compiled(image), wanted, atol=1e-5)


@pytest.mark.parametrize(("model", "attn"), PAIRS, ids=IDS)
def test_items_are_independent_and_answers_repeat(model, attn):
    net = make(model, attn).eval()
    images = torch.randn(3, 1, *SIZE)
    with torch.inference_mode():
        together = net(images)
        assert together.shape == (3, 3, *SIZE)
        assert torch.equal(together, net(images))
        alone = torch.cat([net(image[None]) for image in images])
    assert (together - alone).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 1e-3  # and they do see their image


@pytest.mark.parametrize(("model", "attn"), PAIRS, ids=IDS)
def test_other_sizes_channels_and_classes(model, attn):
    for channels, classes in ((3, 1), (5, 9)):
        net = make(model, attn, channels, classes).eval()
        for height, width in ((32, 48), (64, 32), (48, 80)):
            with torch.inference_mode():
                logits = net(torch.randn(1, channels, height, width))
            assert logits.shape == (1, classes, height, width)
            assert logits.isfinite().all()


@pytest.mark.parametrize(("model", "attn"), PAIRS, ids=IDS)
def test_bfloat16_autocast_stays_close(model, attn):
    net = make(model, attn).eval()
    image = torch.randn(1, 1, *SIZE)
    with torch.inference_mode():
        exact = net(image)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(image).float()
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max() + 0.02


@pytest.mark.parametrize("size", [(33, 48), (47, 50), (3, 80)])
@pytest.mark.parametrize("model", names("model"))
def test_a_size_fits_or_is_answered_with_the_nearest(model, size):
    net = make(model, "qkv").eval()
    image = torch.randn(1, 1, *size)
    try:
        logits = net(image)
    except ValueError as error:
        nearest = re.search(r"nearest: (\d+)x(\d+)", str(error))
        assert f"image {size[0]}x{size[1]}" in str(error)
        size = (int(nearest[1]), int(nearest[2]))
        logits = net(torch.randn(1, 1, *size))
    assert logits.shape[2:] == size


@pytest.mark.parametrize("model", names("model"))
def test_state_survives_saving(model, tmp_path):
    net, other = make(model, "kv_pos").eval(), make(model, "kv_pos").eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    image = torch.randn(1, 1, *SIZE)
    assert torch.equal(net(image), other(image))
