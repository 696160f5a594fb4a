"""Promises of every model with every attention; both are found by glob."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from attnseg.attention.attention import SHARINGS, list_parts
from attnseg.attention.mixing import Mixing
from attnseg.config.budget import build_model
from attnseg.config.training import parse_config
from attnseg.contracts.networks import CONTRACTS, IMAGE
from attnseg.errors import ConfigError
from attnseg.layers.map_decoders import DECODERS
from attnseg.models.hierarchical import DESIGNS
from tests.contracts.groups import compose
from tests.contracts.pairs import (
    attending_models,
    attentions,
    each_pair,
    each_pair_in_full,
    mixings,
)

SIZE = IMAGE[1:]
DEAR = ["graph", "ONNX"]
# Where a faster form does not call every layer.
PLAIN = dict.fromkeys(("crossvit", "cvt", "hierarchical"), ("model.decoder=mlp_plain",))


def make(model: str, attn: str, channels: int = 1, classes: int = 3, options: tuple[str, ...] = ()):
    config = parse_config(compose(f"model={model}", f"attn={attn}", "model.size=tiny", *options))
    torch.manual_seed(0)
    return build_model(config.model, config.attn, channels, classes, SIZE)


def hold(contract, model, attn, options=()):
    finding = CONTRACTS[contract](partial(make, model, attn, options=options))
    assert not finding.problem
    return finding


def assert_alive(model, attn, options=()):
    hold("gradients", model, attn, options)


def combinations():
    """Every model, sharing and mixing; by default each sharing with each mixing, in one model."""
    models = attending_models()
    for i, sharing in enumerate(SHARINGS):
        for j, mixing in enumerate(mixings()):
            for k, model in enumerate(models):
                marks = () if (i + j) % len(models) == k else pytest.mark.slow
                yield pytest.param(model, sharing, mixing, marks=marks)


def test_every_mixing_is_listed():
    assert list_parts(Mixing) == mixings()


@pytest.mark.parametrize(("model", "sharing", "mixing"), list(combinations()))
def test_any_sharing_goes_with_any_mixing(model, sharing, mixing):
    options = (f"attn.sharing={sharing}", f"attn.mixing={mixing}")
    hold("gradients", model, "qkv", options)
    hold("independence", model, "qkv", options)


@each_pair
@pytest.mark.parametrize("contract", [name for name in CONTRACTS if name not in DEAR])
def test_contract(model, attn, contract):
    hold(contract, model, attn)


@each_pair_in_full
@pytest.mark.parametrize("contract", DEAR)
def test_dear_contract(model, attn, contract):
    hold(contract, model, attn)


def channels_and_fusions():
    """Every attention for channels with every fusion; by default with one."""
    fusions = ("sequential", "additive", "concatenation")
    for i, channel in enumerate(attentions()):
        for j, fusion in enumerate(fusions):
            marks = () if i % len(fusions) == j else pytest.mark.slow
            yield pytest.param(channel, fusion, marks=marks)


@pytest.mark.parametrize(("channel", "fusion"), list(channels_and_fusions()))
def test_dae_former_has_a_site_and_a_fusion_of_its_own(fusion, channel):
    options = (f"model.fusion={fusion}", f"attn@model.channel_attn={channel}")
    assert_alive("dae_former", "efficient", options)


CROSSINGS = {"missformer": "bridge_attn", "crossvit": "cross_attn"}
TYPICAL = {"qkv", "kv_pos", "efficient", "spatial_reduction", "window"}


@pytest.mark.parametrize(
    "attn",
    [pytest.param(a, marks=() if a in TYPICAL else pytest.mark.slow) for a in attentions()],
)
@pytest.mark.parametrize("model", CROSSINGS)
def test_attention_between_grids_or_branches_is_a_site_of_its_own(model, attn):
    options = (f"attn@model.{CROSSINGS[model]}={attn}",)
    try:
        assert_alive(model, "qkv", options)
    except ConfigError as refusal:
        assert attn not in {"qkv", "kv", "kv_pos", "efficient", "linear", "random"}
        assert f"model: {CROSSINGS[model]}: " in str(refusal)
        assert "; use one that takes a context, such as qkv" in str(refusal)
        return
    for contract in ("MACs", "maps"):
        hold(contract, model, "qkv", options)


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_crossvit_has_any_decoder(decoder):
    assert_alive("crossvit", "kv_pos", (f"model.decoder={decoder}",))


@pytest.mark.parametrize("decoder", list(DECODERS))
@pytest.mark.parametrize("stride", [1, 2])
def test_cvt_has_any_decoder_and_any_stride(decoder, stride):
    options = (f"model.decoder={decoder}", f"model.stride_kv={stride}")
    assert_alive("cvt", "kv_pos", options)


@pytest.mark.parametrize(
    ("design", "attn", "decoder"),
    list(zip(DESIGNS, ("window", "kv", "focal", "alternate"), DECODERS, strict=True)),
)
def test_hierarchical_has_four_designs(design, attn, decoder):
    """Each with another attention and decoder, also at a size that no stride divides."""
    options = (f"model.design={design}", f"model.decoder={decoder}")
    for contract in ("gradients", "independence", "MACs", "maps"):
        hold(contract, "hierarchical", attn, options)
    net, image = make("hierarchical", attn, options=options).eval(), torch.randn(1, 1, 45, 67)
    exported = torch.export.export(net, (image,)).module()
    torch.testing.assert_close(exported(image), net(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [("model.hybrid=false", "model.n_skip=0"), ("model.n_skip=1",)])
def test_transunet_with_fewer_skips_and_without_resnet(options):
    assert_alive("transunet", "kv", options)


def assert_one_graph(net):
    """Compile training and evaluation; `fullgraph` refuses a graph that breaks."""
    torch.compiler.reset()  # The compiler gives up after eight networks in a process.
    compiled = torch.compile(net.training_outputs, fullgraph=True, backend="eager")
    outputs = compiled(torch.randn(2, 1, *SIZE))
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert all(output.isfinite().all() for output in compiled(torch.randn(2, 1, *SIZE)))


@each_pair_in_full
def test_training_compiles_to_one_graph(model, attn):
    """Dropout, stochastic depth and auxiliary heads included."""
    assert_one_graph(make(model, attn).train())


@pytest.mark.full
@pytest.mark.parametrize("tokens", ["merge", "prune"])
def test_fewer_tokens_compile_to_one_graph(tokens):
    assert_one_graph(make("setr", "kv", options=(f"tokens={tokens}",)).train())


class Wrapped(nn.Module):
    """A layer behind an adapter, as LoRA's: it has no weight of its own to be taken."""

    def __init__(self, layer):
        super().__init__()
        self.inner = layer

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@each_pair
def test_every_layer_is_called_and_may_be_wrapped(model, attn):
    net = make(model, attn, options=PLAIN.get(model, ())).eval()
    image = torch.randn(2, 1, *SIZE)
    with torch.inference_mode():
        wanted = net.training_outputs(image)
        called = set()
        layers = {
            name: layer
            for name, layer in net.named_modules()
            if any(True for _ in layer.parameters()) and not any(True for _ in layer.children())
        }
        hooks = [
            layer.register_forward_hook(lambda *_, name=name: called.add(name))
            for name, layer in layers.items()
        ]
        outputs = net.training_outputs(image)
        assert called == set(layers)
        for a, b in zip(outputs, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            if isinstance(layer, nn.Linear):
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, Wrapped(layer))
        for a, b in zip(net.training_outputs(image), wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@each_pair
def test_dynamic_quantisation_replaces_every_linear_layer(model, attn):
    net = make(model, attn).eval()
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)
    assert not any(isinstance(layer, nn.Linear) for layer in quantised.modules())
    image = torch.randn(1, 1, *SIZE)
    with torch.inference_mode():
        exact, rough = net(image), quantised(image)
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max() + 0.02


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@each_pair
def test_vmap_over_a_batch(model, attn):
    net = make(model, attn).eval()
    images = torch.randn(3, 1, *SIZE)
    together = net(images)
    mapped = torch.func.vmap(lambda image: net(image[None])[0])(images)
    assert torch.allclose(mapped, together, atol=1e-5)


@pytest.mark.parametrize("model", attending_models())
def test_maps_of_one_token_train(model):
    """Of the smallest image that most models take; their deepest maps have a single place."""
    net = make(model, "kv").train()
    outputs = net.training_outputs(torch.randn(32, 1, 16, 16))
    sum(output.square().mean() for output in outputs).backward()
    assert all(output.shape == (32, 3, 16, 16) for output in outputs)
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("size", [(33, 48), (47, 50), (3, 80)])
@pytest.mark.parametrize("model", attending_models())
def test_a_size_fits_or_is_answered_with_the_nearest(model, size):
    net = make(model, "qkv").eval()
    image = torch.randn(1, 1, *size)
    try:
        logits = net(image)
    except ValueError as error:
        nearest = re.search(r"nearest: \[(\d+),(\d+)\]", str(error))
        assert f"image {size[0]}x{size[1]}" in str(error)
        size = (int(nearest[1]), int(nearest[2]))
        logits = net(torch.randn(1, 1, *size))
    assert logits.shape[2:] == size


@pytest.mark.parametrize("model", attending_models())
def test_state_survives_saving(model, tmp_path):
    net, other = make(model, "kv_pos").eval(), make(model, "kv_pos").eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    image = torch.randn(1, 1, *SIZE)
    assert torch.equal(net(image), other(image))
