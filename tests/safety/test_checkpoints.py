"""Hostile weight files and run folders: nothing runs, one line, exit code 4 (2 for YAML)."""

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from attnseg import cli, create_model
from attnseg.errors import CheckpointError
from attnseg.models.pretrained import load_file_into, read_weights
from tests.safety.payload import Payload

NAME = "backbone.patch_embed.proj.bias"


def raw_pickle(path: Path, mark: Path) -> Path:
    path.write_bytes(pickle.dumps(Payload(mark)))
    return path


def zip_archive(path: Path, mark: Path) -> Path:
    torch.save({"state_dict": {"weight": torch.zeros(2), "more": Payload(mark)}}, path)
    return path


def old_format(path: Path, mark: Path) -> Path:
    torch.save(Payload(mark), path, _use_new_zipfile_serialization=False)
    return path


def pickled_array(path: Path, mark: Path) -> Path:
    np.savez(path, weight=np.array([Payload(mark)], dtype=object))
    return path


def a_pickle_named_safetensors(path: Path, mark: Path) -> Path:
    return raw_pickle(path.with_suffix(".safetensors"), mark)


def module(path: Path, mark: Path) -> Path:
    torch.save(nn.Linear(2, 2), path)
    return path


def texts(path: Path, mark: Path) -> Path:
    torch.save({"_target_": "os.mkdir", "_args_": [str(mark)], "_instantiator": "os.mkdir"}, path)
    return path


def one_number_as_many(path: Path, mark: Path) -> Path:
    torch.save({NAME: torch.zeros(1, 1, 1).expand(1, 1 << 40, 1 << 10)}, path)
    return path


def a_header_of_terabytes(path: Path, mark: Path) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", header.getvalue())
    return path


def zip_bomb(path: Path, mark: Path) -> Path:
    np.savez_compressed(path, weight=np.zeros(1 << 27, np.uint8))
    return path


def zip_bomb_of_torch(path: Path, mark: Path) -> Path:
    torch.save({NAME: torch.zeros(1 << 25)}, path.with_suffix(".big"))
    with (
        zipfile.ZipFile(path.with_suffix(".big")) as big,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in big.namelist():
            small.writestr(name, big.read(name))
    return path


def sparse(path: Path, mark: Path) -> Path:
    indices = torch.tensor([[0], [1 << 40]])
    huge = torch.sparse_coo_tensor(indices, torch.ones(1), (1, 1 << 41), check_invariants=False)
    torch.save({NAME: huge}, path)
    return path


def infinite(path: Path, mark: Path) -> Path:
    model = create_model("setr", size="tiny", in_channels=1, num_classes=4, image_size=(64, 64))
    state = model.state_dict()
    torch.save({name: t / 0 if t.is_floating_point() else t for name, t in state.items()}, path)
    return path


def truncated(path: Path, mark: Path) -> Path:
    torch.save({NAME: torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])
    return path


def deep(path: Path, mark: Path) -> Path:
    path.write_bytes(pickle.PROTO + b"\x02" + b"(" * 100_000 + b"." + b"t" * 1000)
    return path


FILES = {
    "raw pickle.pth": raw_pickle,
    "raw pickle.ckpt": raw_pickle,
    "zip archive.pth": zip_archive,
    "old format.bin": old_format,
    "pickled array.npz": pickled_array,
    "pickle as safetensors.x": a_pickle_named_safetensors,
    "module.pt": module,
    "texts.pth": texts,
    "one number as many.pth": one_number_as_many,
    "terabytes.npz": a_header_of_terabytes,
    "zip bomb.npz": zip_bomb,
    "zip bomb.pth": zip_bomb_of_torch,
    "sparse.pth": sparse,
    "infinite.pth": infinite,
    "truncated.pth": truncated,
    "deep.pkl": deep,
}


def assert_refused(answer, code: int, mark: Path):
    assert answer.code == code, answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.out + answer.err
    assert "weights_only=False" not in answer.err
    assert "bug of ours" not in answer.err
    assert not mark.exists()


@pytest.fixture(params=[False, True], ids=["", "forced"])
def force(request, monkeypatch):
    if request.param:  # makes torch.load run what it finds, unless the caller says otherwise
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@pytest.fixture(scope="module")
def model():
    return create_model("setr", size="tiny", in_channels=1, num_classes=3, image_size=(32, 32))


@pytest.mark.parametrize("name", FILES)
def test_hostile_weights(tmp_path, model, force, name):
    mark = tmp_path / "mark"
    path = FILES[name](tmp_path / name, mark)
    with pytest.raises(CheckpointError) as refused:
        load_file_into(model, path)
    message = str(refused.value)
    assert refused.value.exit_code == 4
    assert path.name in message
    assert "\n" not in message
    assert "weights_only=False" not in message
    assert not mark.exists()


@pytest.mark.parametrize("name", ["raw pickle.pth", "zip bomb.pth"])
def test_hostile_weights_on_the_command_line(call, tmp_path, force, name):
    mark = tmp_path / "mark"
    path = FILES[name](tmp_path / name, mark)
    answer = call("experiment=smoke", f"model.pretrained='{path}'")
    assert_refused(answer, 4, mark)
    assert path.name in answer.err


@pytest.mark.parametrize(
    "url", ["https://a.b/c.pth", "http:/a.b/c.pth", "file:///etc/passwd", "s3://a/b.npz"]
)
def test_a_url_is_not_opened(call, tmp_path, url):
    assert_refused(call("experiment=smoke", f"model.pretrained='{url}'"), 4, tmp_path / "mark")


def test_the_payloads_do_work(tmp_path):
    """Or nothing was tested."""
    for make, name, load in (
        (raw_pickle, "a.pth", lambda path: pickle.loads(path.read_bytes())),
        (zip_archive, "b.pth", lambda path: torch.load(path, weights_only=False)),
        (old_format, "c.bin", lambda path: torch.load(path, weights_only=False)),
        (pickled_array, "d.npz", lambda path: np.load(path, allow_pickle=True)["weight"]),
    ):
        mark = tmp_path / f"mark {name}"
        load(make(tmp_path / name, mark))
        assert mark.is_dir()


def test_prefixes_of_wrappers_are_no_harm(tmp_path):
    model = create_model("setr", size="tiny", in_channels=1, num_classes=4, image_size=(64, 64))
    torch.save({"module._orig_mod.a": torch.ones(1), "module.b": torch.ones(1)}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").keys() == {"a", "b"}
    with pytest.raises(Exception, match="no tensor of SETR"):
        load_file_into(model, tmp_path / "w.pt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small finished run, and the folder it was trained in."""
    folder = tmp_path_factory.mktemp("finished")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr("sys.argv", ["train.py", "experiment=smoke", "trainer.max_epochs=1"])
    with pytest.raises(SystemExit) as ended:
        cli.train()
    patch.undo()
    assert ended.value.code == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run folder in the folder of the test, for it to change."""
    for name in ("data", "outputs"):
        shutil.copytree(finished / name, tmp_path / name)
    (path,) = tmp_path.glob("outputs/*/*/*/*/run.json")
    return path.parent


def plant(checkpoint: Path, mark: Path) -> None:
    """Put a hostile checkpoint in place of one, with a digest that fits."""
    zip_archive(checkpoint, mark)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    checkpoint.with_name(f"{checkpoint.name}.sha256").write_text(f"{digest}  {checkpoint.name}\n")


def test_a_run_folder_with_hostile_weights(call, run, tmp_path):
    plant(run / "checkpoints/best.ckpt", tmp_path / "mark")
    answer = call(f"run={run}", "split=val", command=cli.evaluate)
    assert_refused(answer, 4, tmp_path / "mark")


def test_going_on_from_a_hostile_checkpoint(call, run, tmp_path):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    plant(run / "checkpoints/last.ckpt", tmp_path / "mark")
    answer = call("experiment=smoke", "trainer.max_epochs=1")
    assert_refused(answer, 4, tmp_path / "mark")


TAG = "!!python/object/apply:os.mkdir [mark]\n"


def test_a_run_folder_with_python_in_its_configuration(call, run, tmp_path):
    (run / "config.yaml").write_text(f"seed: {TAG}")
    answer = call(f"run={run}", "split=val", command=cli.evaluate)
    assert_refused(answer, 2, tmp_path / "mark")
    answer = call(command=cli.status)  # the other runs are still listed
    assert (answer.code, answer.err) == (0, "")
    assert "1 unreadable" in answer.out
    assert not (tmp_path / "mark").exists()


def test_a_run_folder_that_names_a_function(call, run, tmp_path):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        config.replace("_target_: attnseg.models.setr.SETR", "_target_: os.mkdir")
    )
    assert_refused(call(f"run={run}", "split=val", command=cli.evaluate), 2, tmp_path / "mark")


def test_a_configuration_file_with_python_in_it(call, tmp_path):
    (tmp_path / "more/experiment").mkdir(parents=True)
    (tmp_path / "more/experiment/evil.yaml").write_text(f"# @package _global_\nseed: {TAG}")
    answer = call("--config-dir=more", "experiment=evil")
    assert_refused(answer, 2, tmp_path / "mark")
