"""MONAI runs bundles to the masks of `attnseg predict`, with what it calls for and no more."""

import json
import subprocess
import sys
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.properties import InferProperties, MetaProperties
from torch import nn

from attnseg.errors import CheckpointError, ConfigError
from attnseg.export.export import make_images
from attnseg.export.monai_bundle import (
    CONFIG,
    METADATA,
    PROGRAM,
    WEIGHTS,
    Terms,
    check_expressible,
    compare_masks,
    make_inference_config,
    write_bundle,
)
from attnseg.export.tracing import program_bytes, trace_model
from attnseg.prediction.images import read_item
from attnseg.prediction.inputs import Item
from attnseg.prediction.segment import Member
from attnseg.prediction.spec import InferenceSpec
from attnseg.runs.reopen import TorchNetwork
from tests.limits import HANG
from tests.prediction.made import TILTED, Constant, organ, reoriented, segment, spec
from tests.safety.test_network import FORBID

TWO = {"multilabel": False, "classes": ("a", "b")}
SPECS = {
    "one class": {},
    "coronal": {**TWO, "plane": "coronal"},
    "sagittal, stacked, values": {
        **TWO, "plane": "sagittal", "slices": 3, "stride": 2, "values": (3, 700)
    },
    "overlapping, channels, percentiles": {
        "classes": ("a", "b"), "channels": 2, "window": None
    },
    "percentiles, stacked channels, larger": {
        **TWO, "channels": 2, "window": None, "slices": 3, "size": (64, 80)
    },
    "a window of fractions, smaller": {**TWO, "window": (-0.3, 100.7), "size": (20, 24)},
    "as large as the scan": {**TWO, "size": (33, 40)},
}  # fmt: skip


class Small(nn.Module):
    """Two convolutions, and a ramp that the graph makes on the device."""

    def __init__(self, spec: InferenceSpec) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(spec.in_channels, 8, 3, padding=1)
        self.last = nn.Conv2d(8, spec.labels.channels, 3, padding=1)
        with torch.no_grad():
            self.first.weight *= 3  # so that no class is everywhere

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(images.shape[-1], device=images.device) / 500
        return self.last(torch.tanh(self.first(images + ramp)))


def bundled(folder: Path, spec: InferenceSpec) -> nn.Module:
    """Write the bundle of a small network; return the network."""
    network = Small(spec).eval()
    program = trace_model(network, (spec.in_channels, *spec.size))
    scores = {"val: mean Dice": 0.5}
    write_bundle(folder, program_bytes(program), program.state_dict, spec, {}, scores, Terms())
    return network


def scan_of(spec: InferenceSpec, slices: int = 12) -> np.ndarray:
    """A scan `[S, H, W, C]`."""
    shape = (slices, 33, 40, spec.channels)
    return np.stack([organ(shape[:3], seed) for seed in range(spec.channels)], -1)


@pytest.mark.parametrize("name", SPECS)
def test_masks_are_those_of_prediction(tmp_path, name):
    made = spec(**SPECS[name])
    network = TorchNetwork(bundled(tmp_path / "bundle", made))
    image = scan_of(made)
    differing, voxels = compare_masks(tmp_path / "bundle", made, network, image, TILTED)
    assert (differing, voxels) == (0, image[..., 0].size)


@pytest.mark.parametrize("slices", [1, 9])
def test_a_scan_that_is_black_but_for_few_voxels(tmp_path, slices):
    """Both percentiles are equal, so that all brighter voxels are scaled to 1."""
    made = spec(**TWO, window=None)
    network = TorchNetwork(bundled(tmp_path / "bundle", made))
    image = np.zeros((slices, 33, 40, 1), np.int16)
    image[0, 3:5, 6, 0] = (7, 900)
    differing, _ = compare_masks(tmp_path / "bundle", made, network, image, TILTED)
    assert differing == 0


def run_by_monai(bundle: Path, images: Path, output: Path) -> None:
    monai.bundle.run(
        config_file=str(bundle / CONFIG),
        bundle_root=str(bundle),
        dataset_dir=str(images),
        output_dir=str(output),
    )


def assert_same_files(predicted: Path, output: Path, names: list[str]) -> None:
    for name in names:
        ours, theirs = nib.load(predicted / f"{name}.nii"), nib.load(output / f"{name}_mask.nii.gz")
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        np.testing.assert_allclose(ours.affine, theirs.affine, rtol=0, atol=1e-5)
        assert np.asarray(ours.dataobj).any()


def test_monai_runs_the_file(tmp_path):
    """Each image keeps its own axes, whatever they are."""
    made = spec(**TWO)
    network = bundled(tmp_path / "bundle", made)
    names = ["RAS", "PIL", "LSP"]
    (tmp_path / "in").mkdir()
    for axes in names:
        nib.save(reoriented(organ((40, 33, 12)), TILTED, axes), tmp_path / f"in/{axes}.nii")
    segment(tmp_path / "in", tmp_path / "out", TorchNetwork(network), **TWO)
    run_by_monai(tmp_path / "bundle", tmp_path / "in", tmp_path / "monai")
    assert_same_files(tmp_path / "out/masks", tmp_path / "monai", names)


def test_monai_loads_the_network(tmp_path, monkeypatch):
    """With the weights of `model.pt`, in which one was changed."""
    made = spec(**TWO)
    network = bundled(tmp_path / "bundle", made)
    weights = torch.load(tmp_path / "bundle" / WEIGHTS, weights_only=True)
    weights["last.bias"] += 1
    torch.save(weights, tmp_path / "bundle" / WEIGHTS)
    monkeypatch.chdir(tmp_path / "bundle")
    loaded = monai.bundle.load("bundle", bundle_dir="..", workflow_type="inference", device="cpu")
    images = torch.from_numpy(make_images(made, 3))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), network(images) + 1, rtol=0, atol=1e-5)


def test_metadata(tmp_path):
    made = spec(**TWO, slices=3)
    bundled(tmp_path, made)
    metadata = json.loads((tmp_path / METADATA).read_text())
    texts = (
        "schema version monai_version pytorch_version numpy_version task description authors "
        "copyright"
    ).split()
    assert all(isinstance(metadata[key], str) and metadata[key] for key in texts)
    assert metadata["required_packages_version"].keys() == {"nibabel"}
    assert metadata["eval_metrics"] == {"val: mean Dice": 0.5}
    tensors = metadata["network_data_format"]
    image, pred = tensors["inputs"]["image"], tensors["outputs"]["pred"]
    assert (image["num_channels"], pred["num_channels"]) == (3, 3)
    assert image["spatial_shape"] == pred["spatial_shape"] == list(made.size)
    assert image["value_range"] == [-1, 1] and len(image["channel_def"]) == 3
    assert pred["channel_def"] == {"0": "background", "1": "a", "2": "b"}


def test_monai_finds_what_it_requires(tmp_path):
    made = spec(**TWO)
    bundled(tmp_path, made)
    files = {"config_file": str(tmp_path / CONFIG), "meta_file": str(tmp_path / METADATA)}
    parser = ConfigWorkflow(**files, workflow_type="inference").parser
    properties = {**InferProperties, **MetaProperties}
    needed = [entry["id"] for entry in properties.values() if entry["required"]]
    assert len(needed) > 8
    assert [name for name in needed if name not in parser] == []
    monai.bundle.verify_net_in_out(
        net_id="network", device="cpu", bundle_root=str(tmp_path), **files
    )


def test_the_network_follows_the_device(tmp_path):
    """No tensor of its graph stays on the processor."""
    made = spec(**TWO)
    bundled(tmp_path, made)
    config = make_inference_config(made) | {
        "bundle_root": str(tmp_path), "device": "$torch.device('meta')"
    }  # fmt: skip
    moved = ConfigParser(config).get_parsed_content("network")
    assert moved(torch.zeros(2, 1, *made.size, device="meta")).device.type == "meta"


def test_the_network_sees_what_it_sees_in_prediction(tmp_path):
    """A percentile is between two voxels that are far apart: its rank has to be exact."""
    made = spec(**TWO, window=None, size=(33, 40))
    voxels = np.random.default_rng(0).permutation(np.arange(40 * 33 * 12) % 100)
    voxels[-80:] = 1000
    nib.save(
        nib.Nifti1Image(voxels.reshape(40, 33, 12).astype(np.int16), TILTED), tmp_path / "a.nii"
    )
    config = make_inference_config(made) | {"dataset_dir": str(tmp_path)}
    seen = ConfigParser(config).get_parsed_content("dataset")[0]["image"]
    _, scan = read_item(Item("nifti", "a", (tmp_path / "a.nii",)), made)
    expected = Member(Constant(0.5), made.view).read_slices(scan, slice(0, 12))
    assert scan.high[0] == pytest.approx(824.3, abs=0.1)
    np.testing.assert_allclose(seen.numpy().swapaxes(0, 1), expected, rtol=0, atol=3e-7)


def test_another_network_is_noticed(tmp_path):
    made = spec(**TWO)
    network = bundled(tmp_path / "bundle", made)
    with torch.no_grad():
        network.last.bias[1] += 0.5
    with pytest.raises(CheckpointError, match="voxels differ"):
        compare_masks(tmp_path / "bundle", made, TorchNetwork(network), scan_of(made), TILTED)


def test_a_bundle_that_does_not_run(tmp_path):
    made = spec(**TWO)
    network = TorchNetwork(bundled(tmp_path / "bundle", made))
    (tmp_path / "bundle" / PROGRAM).unlink()
    with pytest.raises(CheckpointError, match="cannot run the bundle"):
        compare_masks(tmp_path / "bundle", made, network, scan_of(made), TILTED)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"volumetric": False}, "pictures"),
        ({"classes": ("$print()",)}, "expression"),
        ({"classes": ("a", "@network")}, "expression"),
        ({"classes": ("a", "%file.json")}, "expression"),
    ],
)
def test_what_cannot_be_a_bundle(values, said):
    with pytest.raises(ConfigError, match=said) as caught:
        check_expressible(spec(**values))
    assert "attnseg capsule" in str(caught.value)
    check_expressible(spec(classes=("a $ b",)))


@pytest.mark.full
def test_without_attnseg_and_network(tmp_path):
    made = spec(**TWO)
    network = bundled(tmp_path / "bundle", made)
    (tmp_path / "in").mkdir()
    nib.save(reoriented(organ((40, 33, 12)), TILTED, "PIR"), tmp_path / "in/a.nii")
    segment(tmp_path / "in", tmp_path / "out", TorchNetwork(network), **TWO)
    code = FORBID + (
        "sys.modules['attnseg'] = None\nfrom monai.bundle import run\n"
        f"run(config_file={CONFIG!r}, dataset_dir='../in', output_dir='../monai')\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path / "bundle", capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "bundle/connected").exists()
    assert_same_files(tmp_path / "out/masks", tmp_path / "monai", ["a"])
