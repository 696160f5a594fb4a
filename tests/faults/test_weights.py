"""Checkpoints and weight files that do not fit; hostile ones are in tests/safety."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from attnseg import cli, create_model
from attnseg.config.identity import run_id
from attnseg.errors import CheckpointError
from attnseg.files import file_digest
from attnseg.models.pretrained import load_file_into
from attnseg.runs.run_folder import RunFolder
from tests.faults.runs import configured

SHORT = ("experiment=smoke", "trainer.max_epochs=1", "trainer.limit_batches=1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with finished runs of two attentions."""
    folder = tmp_path_factory.mktemp("finished")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    for attn in ("qkv", "kv"):
        patch.setattr("sys.argv", ["train.py", *SHORT, f"attn={attn}"])
        with pytest.raises(SystemExit) as ended:
            cli.train()
        assert ended.value.code == 0
    patch.undo()
    return folder


@pytest.fixture
def runs(finished, tmp_path) -> dict[str, Path]:
    """Copies of both run folders, by attention, for a test to change."""
    for name in ("data", "outputs"):
        shutil.copytree(finished / name, tmp_path / name)
    return {path.parts[-3]: path.parent for path in tmp_path.glob("outputs/*/*/*/*/run.json")}


def refused(answer, code, *messages):
    assert answer.code == code, answer.err
    assert all(message in answer.err for message in messages), answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert "weights_only" not in answer.err


def evaluate(call, run):
    return call(f"run={run}", "split=val", command=cli.evaluate)


def test_weights_of_another_attention(call, runs):
    for name in ("best.ckpt", "best.ckpt.sha256"):
        shutil.copy(runs["kv"] / "checkpoints" / name, runs["qkv"] / "checkpoints" / name)
    answer = evaluate(call, runs["qkv"])
    refused(answer, 4, "best.ckpt: weights of another model, attention or size", "attn.project")
    assert "SETR" in answer.err


@pytest.mark.parametrize("part", ["missing", "empty", "page", "no digest"])
def test_a_file_that_is_not_the_checkpoint_of_its_run(call, runs, part):
    path = runs["qkv"] / "checkpoints/best.ckpt"
    if part == "no digest":
        path.with_name("best.ckpt.sha256").unlink()
    elif part == "missing":
        path.unlink()
    else:
        path.write_text("<html>" if part == "page" else "")
    refused(evaluate(call, runs["qkv"]), 4, "best.ckpt: missing or damaged, unlike its SHA-256")


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04"])
def test_what_is_no_checkpoint_though_its_digest_fits(call, runs, content):
    path = runs["qkv"] / "checkpoints/best.ckpt"
    path.write_bytes(content)
    path.with_name("best.ckpt.sha256").write_text(f"{file_digest(path)}  best.ckpt\n")
    refused(evaluate(call, runs["qkv"]), 4, "best.ckpt: ", "; ")


def test_a_run_of_a_newer_version(call, runs):
    path = runs["qkv"] / "config.yaml"
    path.write_text(path.read_text() + "newer: 1\n")
    refused(evaluate(call, runs["qkv"]), 2, "newer: no such option")


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", None])
def test_a_folder_that_is_not_a_run(call, runs, name, content):
    path = runs["qkv"] / name
    if content is None:
        path.unlink()
        words = ("not a run folder; give one that holds config.yaml",)
    else:
        path.write_text(content)
        words = (f"{path}: ", "; train again")
    refused(evaluate(call, runs["qkv"]), 2, *words)


@pytest.mark.parametrize("part", ["", "checkpoints/best.ckpt"])
def test_a_run_continues_with_the_weights_of_another(call, runs, tmp_path, part):
    answer = call(*SHORT, f"model.pretrained={runs['kv'] / part}")
    assert answer.code == 0, answer.err
    assert "loaded 100 tensors" in answer.out
    (folder,) = {path.parent for path in tmp_path.rglob("run.json")} - set(runs.values())
    facts = RunFolder(folder).facts
    assert facts.pretrained is not None
    assert facts.pretrained[0].startswith("loaded 100 tensors")
    (runs["kv"] / "checkpoints/best.ckpt").unlink()  # which the finished run needs no more
    assert evaluate(call, folder).code == 0


def test_weights_of_another_model_name_both(call, tmp_path):
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "resnet.pth")
    answer = call("experiment=smoke", f"model.pretrained={tmp_path}/resnet.pth")
    refused(answer, 4, "resnet.pth: no tensor of SETR in it; give weights of this model")


def test_a_flipped_bit_in_published_weights(tmp_path):
    """PyTorch's own files and NumPy's have check sums; safetensors have none."""
    state = {"backbone.patch_embed.proj.weight": torch.zeros(192, 1, 8, 8)}
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    model = create_model("setr", size="tiny", in_channels=1, num_classes=4, image_size=(64, 64))
    with pytest.raises(CheckpointError, match=r"weights\.pth: "):
        load_file_into(model, path)


CHANGES = (
    "optimizer.lr=0.5", "dataset.batch_size=2", "seed=1", "optimizer=sgd", "attn=kv_pos",
    "dataset.split.seed=1", "loss=dice", "trainer.max_epochs=7", "augment=strong",
    "trainer.precision=bf16-mixed",
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_never_resumed_with_other_options(tmp_path, change):
    """Another option is another run, in a folder of its own, so nothing can be mixed up."""
    plain = configured(tmp_path)
    changed = configured(tmp_path, change)
    assert run_id(changed, "data", "split") != run_id(plain, "data", "split")


@pytest.mark.parametrize("what", [("other", "split"), ("data", "other")])
def test_a_run_is_never_resumed_with_other_data_or_another_fold(tmp_path, what):
    plain = configured(tmp_path)
    assert run_id(plain, *what) != run_id(plain, "data", "split")


@pytest.mark.parametrize("change", ["trainer.num_workers=2", "trainer.save_minutes=5"])
def test_a_run_goes_on_with_other_loaders(tmp_path, change):
    plain = configured(tmp_path)
    changed = configured(tmp_path, change)
    assert run_id(changed, "data", "split") == run_id(plain, "data", "split")


def test_kv_pos_at_another_size():
    """Its position term is a formula: the same weights fit any number of tokens."""
    small, large = (
        create_model(
            "setr",
            attn="kv_pos",
            size="tiny",
            in_channels=1,
            num_classes=4,
            image_size=(side, side),
        )
        for side in (64, 128)
    )
    weights = {n: t for n, t in small.state_dict().items() if n.startswith("encoder.")}
    assert any(name.endswith("attn.mix.weight") for name in weights)
    assert not large.load_state_dict(weights, strict=False).unexpected_keys
    assert large(torch.zeros(1, 1, 128, 128)).isfinite().all()


def test_attempts_and_facts_stay_when_a_run_is_refused(call, runs):
    path = runs["qkv"] / "checkpoints/best.ckpt"
    path.write_bytes(b"")
    before = {p: p.read_bytes() for p in runs["qkv"].rglob("*") if p.is_file()}
    assert evaluate(call, runs["qkv"]).code == 4
    assert {p: p.read_bytes() for p in runs["qkv"].rglob("*") if p.is_file()} == before
    assert json.loads((runs["qkv"] / "run.json").read_text())["status"] == "done"
