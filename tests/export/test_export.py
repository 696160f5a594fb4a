"""The command on a trained run: files of one network, nothing kept that computes another."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from attnseg import cli
from attnseg.config.budget import build_model
from attnseg.config.errors import parse_options
from attnseg.config.nodes import Component
from attnseg.config.training import Model
from attnseg.errors import CheckpointError, ConfigError
from attnseg.export import export as exporting
from attnseg.export import monai_bundle
from attnseg.export.export import make_images
from attnseg.export.options import Export
from attnseg.files import file_digest
from attnseg.prediction.capsule import Capsule
from attnseg.prediction.exported import Exported
from attnseg.runs.reopen import load_network, read_spec
from attnseg.runs.run_folder import RunFolder
from tests.export import made
from tests.faults.runs import attempt, run_of

TINY = ("model=setr", "model.depth=1", "model.auxiliary=false", "trainer.max_epochs=1",
        "dataset.limit_cases=3", "dataset.image_size=[32,48]", "logger=none")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert attempt(folder, *TINY) == 0, (folder / "output").read_text()
    return run_of(folder)


@pytest.fixture(scope="module")
def folder(run):
    """What `int8=true` exports of it."""
    code = cli_export(run, "int8=true")
    assert code == 0
    return run / "export"


def cli_export(run, *options):
    import sys

    before, sys.argv = sys.argv, ["export.py", f"run={run}", *options]
    try:
        cli.export()
    except SystemExit as ended:
        return ended.code or 0
    finally:
        sys.argv = before


def test_every_file_computes_the_same(run, folder):
    exported = Exported(folder)
    images = make_images(exported.spec, 3)
    expected = load_network(RunFolder(run))(images)
    assert np.abs(exported.network(1)(images) - expected).max() < 1e-4
    program = torch.export.load(folder / "model.pt2").module()
    assert np.abs(program(torch.from_numpy(images)).detach().numpy() - expected).max() < 1e-4
    built = json.loads((folder / "weights.json").read_text())
    model = build_model(
        Model.model_validate(built["model"]), Component.model_validate(built["attn"]),
        built["in_channels"], built["num_classes"], tuple(built["image_size"]),
    ).eval()  # fmt: skip
    model.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    with torch.inference_mode():
        assert np.array_equal(model(torch.from_numpy(images)).numpy(), expected)


def test_facts(run, folder):
    facts = json.loads((folder / "export.json").read_text())
    names = {path.name for path in folder.iterdir()} - {"export.json"}
    assert names == set(facts["files"]) == {
        "model.onnx", "model.int8.onnx", "model.pt2", "weights.safetensors", "weights.json",
        "recipe.json",
    }  # fmt: skip
    for name, said in facts["files"].items():
        assert said == {
            "sha256": file_digest(folder / name),
            "bytes": (folder / name).stat().st_size,
        }
    assert "validation slices" in facts["compared_on"]
    assert max(facts["differences"][name] for name in ("ONNX", "torch.export")) <= 1e-4
    assert facts["differences"]["ONNX int8"] > 0
    means = facts["validation"]["means"]
    then = json.loads((run / "metrics.json").read_text())["val"]["mean"]["dice"]
    assert means["PyTorch"]["mean"] == pytest.approx(then, abs=1e-6)  # the run's own figure
    assert means["ONNX"]["mean"] == pytest.approx(then, abs=1e-3)


def test_a_file_that_changed_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "export")
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    with pytest.raises(CheckpointError, match="changed since it was exported"):
        Exported(copy).network()
    (copy / "export.json").unlink()
    with pytest.raises(ConfigError, match="nothing was exported"):
        Exported(copy)


def copy_of(run, tmp_path):
    """A copy of a run, in a place as deep."""
    return shutil.copytree(run, tmp_path / "outputs/phantom/setr/kv" / run.name)


def test_a_file_that_computes_something_else_is_not_kept(run, folder, tmp_path, monkeypatch, call):
    copy = copy_of(run, tmp_path)
    assert (copy / "export/model.onnx").is_file()  # of an earlier export, sound
    monkeypatch.setattr(
        exporting, "onnx_bytes",
        lambda program: made.graph(1, 3, (32, 48)).SerializeToString(),
    )  # fmt: skip
    answer = call(f"run={copy}", "formats=onnx", command=cli.export)
    assert answer.code == 4
    assert "logits differ from PyTorch's by" in answer.err and answer.err.count("\n") == 1
    assert sorted(p.name for p in (copy / "export").iterdir()) == ["recipe.json"]


def test_without_the_data(run, tmp_path, call):
    copy = copy_of(run, tmp_path)
    words = [f"run={copy}", "root=missing", "formats=safetensors,onnx"]
    answer = call(*words, command=cli.export)
    assert answer.code == 0, answer.err
    assert "compared on made-up images" in answer.out
    answer = call(*words, "int8=true", command=cli.export)
    assert answer.code == 2 and "root=DIR" in answer.err


def test_a_monai_bundle_of_a_run(run, tmp_path, call):
    copy = copy_of(run, tmp_path)
    answer = call(f"run={copy}", "formats=torch,monai", command=cli.export)
    assert answer.code == 0, answer.err
    programs = [copy / "export" / name for name in ("model.pt2", "monai_bundle/models/model.pt2")]
    assert programs[0].read_bytes() == programs[1].read_bytes()
    facts = json.loads((copy / "export/export.json").read_text())
    masks, name = facts["masks"], "monai_bundle/configs/metadata.json"
    assert masks["differing"] == 0 < masks["voxels"]
    assert masks["compared_on"].startswith("validation case")
    assert facts["files"][name]["sha256"] == file_digest(copy / "export" / name)
    metadata = json.loads((copy / "export" / name).read_text())
    split, _, label = next(iter(metadata["eval_metrics"])).partition(": mean ")
    means = json.loads((run / "metrics.json").read_text())[split]["mean"]
    assert metadata["eval_metrics"][f"{split}: mean {label}"] == means[label.lower()]
    assert "## Results" in (copy / "export/monai_bundle/docs/MODEL_CARD.md").read_text()
    words = [f"run={copy}", "formats=monai", "root=missing", "license=terms.txt"]
    words += ['authors="A. Author, B. Author"', "copyright='2026 Our Hospital'"]
    answer = call(*words, command=cli.export)
    assert answer.code == 2 and "terms.txt cannot be read as text" in answer.err
    (tmp_path / "terms.txt").write_text("\n")
    answer = call(*words, command=cli.export)
    assert answer.code == 2 and "terms.txt is empty" in answer.err
    assert programs[1].is_file()  # of the earlier export
    (tmp_path / "terms.txt").write_text("Do as you like.\n")
    answer = call(*words, command=cli.export)
    assert answer.code == 0, answer.err
    assert (copy / "export/monai_bundle/LICENSE").read_text() == "Do as you like.\n"
    metadata = json.loads((copy / "export" / name).read_text())
    assert metadata["authors"] == "A. Author, B. Author"
    assert metadata["copyright"] == "2026 Our Hospital"
    masks = json.loads((copy / "export/export.json").read_text())["masks"]
    assert masks["compared_on"] == "a made-up scan" and masks["differing"] == 0
    assert call(f"run={copy}", "formats=safetensors", command=cli.export).code == 0
    assert not (copy / "export/monai_bundle").exists()


def test_a_monai_bundle_that_is_not_kept(run, tmp_path, monkeypatch, call):
    copy = copy_of(run, tmp_path)
    monkeypatch.setattr(monai_bundle, "PERCENTILES", (20.0, 80.0))
    spec = read_spec(RunFolder(copy)).model_copy(update={"window": None})
    monkeypatch.setattr(exporting, "read_spec", lambda run: spec)
    answer = call(f"run={copy}", "formats=monai", command=cli.export)
    assert answer.code == 4 and "voxels differ" in answer.err
    assert not (copy / "export/monai_bundle").exists()
    pictures = spec.model_copy(update={"volumetric": False})
    monkeypatch.setattr(exporting, "read_spec", lambda run: pictures)
    answer = call(f"run={copy}", "formats=monai", command=cli.export)
    assert answer.code == 2 and "attnseg capsule" in answer.err and answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=missing"], "not a run folder"),
        ([], "run: not set"),
        (["run=missing", "formats=onxx"], "onxx"),
        (["run=missing", "formats=[]"], "formats"),
        (["run=missing", "formats=torch", "int8=true"], "add onnx to formats"),
        (["run=missing", "formats=torch", "authors=me"], "add monai to formats"),
        (["run=missing", "formats=monai", "copyright='@me'"], "copyright: MONAI takes it for"),
    ],
)
def test_wrong_commands(call, words, said):
    answer = call(*words, command=cli.export)
    assert answer.code == 2
    assert said in answer.err and answer.err.count("\n") == 1


def test_only_8_bit_weights_need_a_profile():
    """A capsule exports a run that was not exported before, without a profile."""
    plain = {"choices": {}, "profile": {}, "run": "r", "formats": ["onnx"]}
    plain |= dict.fromkeys(("license", "authors", "copyright", "root", "data"))
    assert parse_options(Export, {**plain, "int8": False}).profile == {}
    with pytest.raises(ConfigError, match="profile: ; give one"):
        parse_options(Export, {**plain, "int8": True})


def test_a_capsule_of_a_run(run, folder, tmp_path, call):
    path = tmp_path / "c.zip"
    words = [f"run={run}", f"output={path}", "postprocess.largest_component=true"]
    answer = call(*words, command=cli.capsule)
    assert answer.code == 0, answer.err
    assert "the weights have none" in answer.out  # no licence
    capsule = Capsule(path)
    images = make_images(capsule.spec, 3)
    assert np.abs(capsule.network(1)(images) - load_network(RunFolder(run))(images)).max() < 1e-4
    assert capsule.values("postprocessing.json")["largest_component"] is True
    card = capsule.text("MODEL_CARD.md")
    for text in (
        "## Intended use", "Metric profile strict (", "opened 1 time ", "Trained on made-up images",
        capsule.spec.weights_sha256, "| val | 1 |",
    ):  # fmt: skip
        assert text in card
    answer = call(f"run={run}", "output=missing/c.zip", command=cli.capsule)
    assert answer.code == 2
