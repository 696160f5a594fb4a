"""Exported graphs compute what PyTorch does; strange ones are refused."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from attnseg.api import create_model
from attnseg.errors import CheckpointError, ConfigError
from attnseg.export.export import (
    TOLERANCE,
    largest_difference,
    make_images,
    measure_latencies,
)
from attnseg.export.tracing import onnx_bytes, trace_model
from attnseg.prediction.onnx import OnnxNetwork, walk_messages
from attnseg.runs.reopen import TorchNetwork
from tests.export import made

SIZE = (64, 64)
FLAT = (64, 96)
POS_DIM = 50  # channels of KV+Pos's pair code


@cache
def exported(model: str, attn: str, size=SIZE, **options):
    torch.manual_seed(0)
    net = create_model(model, attn=attn, num_classes=4, image_size=size, size="tiny", **options)
    spec = made.spec(model=model, attn=attn, classes=("a", "b", "c"), size=size)
    return net.eval(), onnx_bytes(trace_model(net, (spec.in_channels, *spec.size))), spec


def assert_equal(net, data, spec):
    torch_network, network = TorchNetwork(net), OnnxNetwork(data, 1, spec)
    images = make_images(spec, 8)
    apart = largest_difference(torch_network, network, images)
    assert apart <= TOLERANCE
    assert np.abs(network(images)).max() > 100 * TOLERANCE  # else any answer would do
    return apart, measure_latencies({"PyTorch": torch_network, "ONNX": network}, images[:1])


@pytest.mark.parametrize("attn", ["qkv", "kv_pos"])  # of all attentions: tests/contracts
def test_onnx_computes_the_same(attn):
    assert_equal(*exported("setr", attn, FLAT, depth=1, auxiliary=False))


def shapes(data: bytes) -> list[tuple[int, ...]]:
    """Every known shape in a graph, of constants and of what is computed, without the batch."""
    model = onnx.shape_inference.infer_shapes(
        onnx.load_model_from_string(data), strict_mode=True, data_prop=True
    )
    found = [tuple(m.dims) for m in walk_messages(model) if isinstance(m, onnx.TensorProto)]
    for value in (*model.graph.value_info, *model.graph.output):
        found.append(tuple(d.dim_value for d in value.type.tensor_type.shape.dim))
    return found


def test_kv_pos_has_no_tensor_of_all_pairs_by_channels():
    tokens = 1 + 8 * 12
    _, kv_pos, _ = exported("setr", "kv_pos", FLAT, depth=1, auxiliary=False)
    _, kv, _ = exported("setr", "kv", FLAT, depth=1, auxiliary=False)
    found = {"kv_pos": shapes(kv_pos), "kv": shapes(kv)}
    assert any(shape[-2:] == (tokens, tokens) for shape in found["kv_pos"])  # scores, of each head
    heads = 3
    for shape in found["kv_pos"]:
        if shape.count(tokens) >= 2:
            assert np.prod([side for side in shape if side]) <= heads * tokens**2
            assert POS_DIM not in shape
    # Nor is the bias stored for all pairs: the file is hardly larger than KV's.
    assert len(kv_pos) < len(kv) + 4 * tokens**2


def test_another_size_than_exported_is_refused():
    network = OnnxNetwork(made.graph().SerializeToString(), 1)
    assert network(np.zeros((5, 1, *made.SIZE), np.float32)).shape == (5, 3, *made.SIZE)
    for shape in ((1, 1, 32, 24), (1, 2, *made.SIZE), (1, *made.SIZE)):
        with pytest.raises(ConfigError, match="exported for images of 1x16x24"):
            network(np.zeros(shape, np.float32))


class NoOperator(nn.Module):
    def forward(self, image):
        return torch.special.bessel_j0(image).repeat(1, 3, 1, 1)


class NoGraph(nn.Module):
    def forward(self, image):
        return image if image.sum() > 0 else -image


def test_an_operator_that_cannot_be_exported_is_named():
    with pytest.raises(ConfigError, match=r"bessel_j0.*; leave onnx out") as caught:
        onnx_bytes(trace_model(NoOperator(), (1, *made.SIZE)))
    assert str(caught.value).count("\n") == 0


def test_a_model_that_cannot_be_traced():
    with pytest.raises(ConfigError, match="cannot be traced") as caught:
        trace_model(NoGraph(), (1, *made.SIZE))
    assert str(caught.value).count("\n") == 0


def bytes_of(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString()


def two_inputs() -> onnx.ModelProto:
    model = made.graph()
    model.graph.input.append(model.graph.input[0])
    model.graph.input[1].name = "more"
    return model


GRAPHS = {
    "empty": b"",
    "text": b"not a graph at all",
    "cut off": bytes_of(made.graph())[:-40],
    "no node": bytes_of(onnx.ModelProto(ir_version=10)),
    "reads a file": bytes_of(made.external("/etc/passwd")),
    "reads a file beside it": bytes_of(made.external("weights.bin")),
    "an operator of others": bytes_of(made.graph(domain="com.example")),
    "a fixed batch": bytes_of(made.graph(batch=1)),
    "a free size": bytes_of(made.graph(size=("h", "w"))),
    "two inputs": bytes_of(two_inputs()),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_are_refused(tmp_path, name):
    path = tmp_path / "m.onnx"
    path.write_bytes(GRAPHS[name])
    with pytest.raises(CheckpointError, match=r"m\.onnx: ") as caught:
        OnnxNetwork(path, 1)
    assert str(caught.value).count("\n") == 0


def test_graphs_of_another_spec_are_refused():
    data = bytes_of(made.graph())
    OnnxNetwork(data, 1, made.spec())
    for changes in ({"size": (24, 16)}, {"channels": 3}, {"slices": 3}, {"classes": ("a",)}):
        with pytest.raises(CheckpointError, match="in its spec"):
            OnnxNetwork(data, 1, made.spec(**changes))


def test_what_is_no_local_file(tmp_path):
    for place in (tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(CheckpointError, match="give a local file"):
            OnnxNetwork(place)
