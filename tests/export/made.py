"""Inference specs, graphs and capsules that tests make without training, and without torch."""

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from attnseg.prediction import capsule
from attnseg.prediction.capsule import GOLDEN_INPUT, GOLDEN_OUTPUT, MANIFEST, MODEL, SPEC
from attnseg.prediction.spec import InferenceSpec

SIZE = (16, 24)


def spec(**changes) -> InferenceSpec:
    values = {
        "run": "0123456789", "model": "setr", "attn": "kv", "dataset": "phantom",
        "classes": ("a", "b"), "multilabel": False, "channels": 1, "size": SIZE, "slices": 1,
        "stride": 1, "window": None, "volumetric": True, "plane": "axial", "spacing": None,
        "profile": ("strict", "94e58393"), "data_digest": "0" * 64, "split_digest": "1" * 64,
        "weights_sha256": "2" * 64,
    }  # fmt: skip
    return InferenceSpec(**{**values, **changes})


def graph(channels: int = 1, outputs: int = 3, size=SIZE, out_size=None, batch="n", domain=""):
    """A graph whose k-th logit is the first channel times k."""
    weight = np.zeros((outputs, channels, 1, 1), np.float32)
    weight[:, 0, 0, 0] = np.arange(outputs)
    ends = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, channels, *size]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, outputs, *size]),
    ]
    node = helper.make_node("Conv", ["images", "weight"], ["logits"], domain=domain)
    made = helper.make_graph(
        [node], "made", ends[:1], ends[1:], [numpy_helper.from_array(weight, "weight")]
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def external(path: str) -> onnx.ModelProto:
    """A graph whose weights are in another file."""
    model = graph()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", path
    return model


def array(values) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def parts(**changes: bytes) -> dict[str, bytes]:
    images = np.random.default_rng(0).random((2, 1, *SIZE), np.float32)
    logits = images * np.arange(3, dtype=np.float32)[:, None, None]
    return {
        MODEL: graph().SerializeToString(),
        SPEC: spec().to_json().encode(),
        "postprocessing.json": b"{}",
        "profile.json": b"{}",
        "metrics.json": b"{}",
        "MODEL_CARD.md": b"# A card\n",
        "LICENSE": b"None.\n",
        GOLDEN_INPUT: array(images),
        GOLDEN_OUTPUT: array(logits),
        **changes,
    }


def write(path: Path, facts: Mapping[str, object] = {}, **changes: bytes) -> Path:
    """Write a capsule as ours are."""
    path.write_bytes(capsule.pack_capsule(path, parts(**changes), facts))
    return path


def forge(path: Path, change) -> Path:
    """Write a capsule as an attacker would: anything goes, but the seal is right.

    Args:
        path: of the file.
        change: is given the entries, a list of (ZipInfo, bytes), and returns what is written.
    """
    made = parts()
    files = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in made.items()
    }
    manifest = {"version": 1, "tolerance": 1e-4, "files": files}
    entries = [(regular(MANIFEST), json.dumps(manifest).encode())]
    entries += [(regular(name), data) for name, data in made.items()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, data in change(entries):
            archive.writestr(entry, data, entry.compress_type)
        archive.comment = b"0" * 64
    path.write_bytes(capsule.add_seal(buffer.getvalue()))
    return path


def regular(name: str, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (kind | 0o644) << 16
    return entry
