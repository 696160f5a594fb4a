"""The command with a run that was really trained: what is scored is what is predicted."""

import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from attnseg import cli
from attnseg.config.folder import NO_ATTENTION, attentions_of
from attnseg.data.readers import rle
from attnseg.evaluation.evaluate import FinishedRun
from attnseg.evaluation.options import Evaluate
from attnseg.runs.run_folder import RunFolder
from attnseg.viewer.options import View
from attnseg.viewer.sides import open_sides
from attnseg.viewer.uploads import Upload
from attnseg.viewer.written import open_predictions
from tests.contracts.groups import names
from tests.faults.runs import attempt, run_of
from tests.prediction.made import TILTED, organ, spec

CLASSES = ("large_bowel", "small_bowel", "stomach")


def command(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["attnseg", *words])
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a smoke run, its export included; read only."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("train", "experiment=smoke", "attn=kv", "dataset.image_size=[64,48]") == 0
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The same in an empty folder of its own, which is the current one."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(place) -> Path:
    (path,) = place.glob("outputs/*/*/*/*/run.json")
    return path.parent.relative_to(place)


def scans(place: Path) -> Path:
    return next(place.glob("data/phantoms/*/train")).relative_to(place)


def read_codes(path: Path, shape: tuple[int, int]) -> np.ndarray:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    found = [rle.decode(code, shape) for code in table["segmentation"]]
    assert table["class"].tolist()[:3] == list(CLASSES)
    return np.array(found).reshape(-1, 3, *shape).swapaxes(0, 1)


def evaluated(run: Path) -> FinishedRun:
    keys = set(Evaluate.model_fields) - {"choices", "profile"}
    options = dict.fromkeys(keys) | {
        "choices": {}, "profile": {}, "split": "val", "pipeline": "native", "worst": 0,
        "device": "cpu", "run": str(run),
    }  # fmt: skip
    return FinishedRun(RunFolder(run), Evaluate.model_validate(options))


def test_the_masks_are_those_that_evaluation_scores(place, run):
    """For each validation case, every pixel; although the logits are resized both ways."""
    assert command("predict", f"run={run}", f"input={scans(place)}", "output=out") == 0
    finished = evaluated(run)
    assert finished.data.val
    for case in finished.data.val:
        expected = finished.segmenter()(case).masks
        (path,) = place.glob(f"out/masks/*/{case.case}.csv")
        assert expected.any()
        assert np.array_equal(read_codes(path, case.shape[1:]), expected)


def test_a_run_travels_without_its_dataset(place, run, capfd):
    shutil.move(scans(place), "scans")
    shutil.rmtree("data")
    shutil.move(run, "elsewhere")
    assert command("predict", "run=elsewhere", "input=scans/case1", "output=out", "flips=[h]") == 0
    found = json.loads(Path("out/manifest.json").read_text())
    assert found["recipes"][0]["classes"] == list(CLASSES)
    assert found["flips"] == ["h"]
    out = capfd.readouterr().out
    assert "Segmenting: " in out
    assert "items in" in out


def again(run: Path, name: str, **facts) -> Path:
    """A copy of a run with other facts."""
    other = run.parent / name
    shutil.copytree(run, other)
    found = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**found, "id": name, **facts}))
    return other


def test_the_runs_of_a_study_vote(place, run, capfd):
    """Three times the same run decides as it does alone."""
    first, second = again(run, "b"), again(run, "c")
    again(run, "unfinished", status="failed")
    case = f"input={scans(place)}/case1"
    assert command("predict", f"run={run}", case, "output=alone") == 0
    assert command("predict", "study=outputs", case, "output=study", "probabilities=true") == 0
    assert "1 runs below outputs are not finished" in capfd.readouterr().out
    assert command("predict", f"run=[{run},{first},{second}]", case, "output=listed") == 0
    alone, study, listed = (
        sorted(place.glob(f"{name}/masks/*.csv")) for name in ("alone", "study", "listed")
    )
    assert len(alone) == len(study) == len(listed) == 1
    assert study[0].read_bytes() == listed[0].read_bytes()
    one, three = (read_codes(paths[0], (60, 72)) for paths in (alone, study))
    assert (one != three).sum() <= 3  # probabilities that are 0.5 to the last bit
    assert len(json.loads(Path("study/manifest.json").read_text())["recipes"]) == 3
    choices = json.loads((run / "run.json").read_text())["choices"]
    other = again(run, "d", choices={**choices, "attn": "qkv"})
    capfd.readouterr()
    assert command("predict", "study=outputs", case, "output=x") == 2
    assert f"{other} is setr with qkv" in capfd.readouterr().err


def test_runs_that_do_not_fit_are_named(place, run, capfd):
    data = json.loads((run / "run.json").read_text())["data"]
    other = again(run, "other", data={**data, "window": [0.0, 100.0]})
    assert command("predict", f"run=[{run},{other}]", f"input={scans(place)}", "output=x") == 2
    told = capfd.readouterr().err
    assert f"run: {run.name} has window None and other 0.0,100.0" in told


def test_cleaning_is_asked_for_by_class(place, run):
    words = [f"run={run}", f"input={scans(place)}/case1"]
    assert command("predict", *words, "output=a") == 0
    clean = ["postprocess.largest_component=[stomach]", "postprocess.min_ml={small_bowel:1e6}"]
    assert command("predict", *words, "output=b", *clean, "postprocess.min_pixels=2") == 0
    before, after = (
        json.loads(Path(o, "manifest.json").read_text())["items"][0]["voxels"] for o in "ab"
    )
    assert after["small_bowel"] == 0 < before["small_bowel"]
    assert 0 < after["stomach"] <= before["stomach"]


@pytest.mark.slow
def test_an_export_and_a_capsule_predict_the_same(place, run):
    assert command("export", f"run={run}", "formats=onnx") == 0
    assert command("capsule", f"run={run}", "output=made.zip") == 0
    case = f"input={scans(place)}/case1"
    ways = {
        "torch": [f"run={run}"],
        "onnx": [f"run={run}", "backend=onnx", "threads=1"],
        "capsule": ["capsule=made.zip"],
    }
    masks = {}
    for name, words in ways.items():
        assert command("predict", *words, case, f"output={name}") == 0
        (path,) = Path(name).glob("masks/*.csv")
        masks[name] = read_codes(path, (60, 72))
    assert np.array_equal(masks["onnx"], masks["capsule"])
    assert (masks["onnx"] != masks["torch"]).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("model", names("model"))
def test_a_capsule_of_any_model_predicts_the_same_without_torch(model, trained, tmp_path):
    """Of networks after a single step, probability by probability."""
    (tmp_path / "data").symlink_to(trained / "data")
    size = ("model.size=tiny", "dataset.image_size=[64,64]", "dataset.limit_cases=6")
    short = ("trainer.max_epochs=1", "trainer.limit_batches=1", "logger=none")
    attn = "kv" if "kv" in attentions_of(model) else NO_ATTENTION
    options = (f"model={model}", f"attn={attn}", *size, *short)
    assert attempt(tmp_path, *options) == 0, (tmp_path / "output").read_text()
    case = f"{scans(tmp_path)}/case1"
    words = ("probabilities=true", f"input={tmp_path / case}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert command("capsule", f"run={run_of(tmp_path)}", "output=made.zip") == 0
        assert command("predict", f"run={run_of(tmp_path)}", *words, "output=torch") == 0
    barrier = "import sys; sys.modules['torch'] = None; from attnseg.cli import main; main()"
    for line in (["verify", "made.zip"], ["predict", "capsule=made.zip", *words, "output=capsule"]):
        done = subprocess.run(
            [sys.executable, "-c", barrier, *line], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    (expected,), (found,) = (
        [np.asarray(nib.load(path).dataobj) for path in tmp_path.glob(f"{way}/probabilities/*")]
        for way in ("torch", "capsule")
    )
    assert np.ptp(expected) > 0.01
    assert np.abs(found - expected).max() < 1e-4


def test_onnx_predicts_without_torch(tmp_path):
    """The command in a process without torch, and a graph that answers with its input."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made = spec()
    size = ["batch", 1, *made.size]
    end = partial(onnx.helper.make_tensor_value_info, elem_type=1, shape=size)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["image"], ["logits"])], "made",
        [end("image")], [end("logits")],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    folder = tmp_path / "run/export"
    folder.mkdir(parents=True)
    files = {"model.onnx": model.SerializeToString(), "recipe.json": made.to_json().encode()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    digests = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    (folder / "export.json").write_text(json.dumps({"files": digests}))
    nib.save(nib.Nifti1Image(organ(), TILTED), tmp_path / "a.nii.gz")
    barrier = "import sys; sys.modules['torch'] = None; from attnseg.cli import main; main()"
    words = ["predict", "run=run", "input=a.nii.gz", "output=out", "threads=1"]
    for backend, code in (("torch", 2), ("onnx", 0)):
        done = subprocess.run(
            [sys.executable, "-c", barrier, *words, f"backend={backend}"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert ("torch is not installed; use backend=onnx" in done.stderr) == bool(code)
    mask = np.asarray(nib.load(tmp_path / "out/masks/a.nii.gz").dataobj)
    assert np.array_equal(mask > 0, organ() > 100)


def test_the_page_shows_the_masks_of_the_command(place, run, tmp_path):
    """A scan that is dropped on the page of a run, and what the command has written of it."""
    folder = sorted(scans(place).glob("case*/case*_day*"))[0]
    assert command("predict", f"run={run}", f"input={folder}", "output=out") == 0
    written = open_predictions(Path("out"))
    upload = Upload(tmp_path / "dropped", 10_000_000)
    for path in sorted(folder.rglob("*.png")):
        with path.open("rb") as file:
            upload.receive(f"{path.relative_to(folder.parent)}", file, path.stat().st_size)
    options = dict.fromkeys(View.model_fields) | {"run": str(run), "device": "cpu"}
    (side,) = open_sides(View.model_construct(**options))
    side.segment(upload, tmp_path / "results", "nifti")
    assert side.lines == []
    (case,) = side.cases.values()
    (earlier,) = written.cases.values()
    assert case.name == earlier.name == folder.name
    (mine,), (expected,) = case.masks.values(), earlier.masks.values()
    assert mine.read_bytes() == expected.read_bytes()
    assert np.array_equal(case.load().label_map, earlier.load().label_map)


FAULTS = {
    "nothing to predict with": (["input=x", "output=y"], 2, "run: give one of run=DIR"),
    "a run and a study": (["run=RUN", "study=outputs", "input=x", "output=y"], 2, "run: give one"),
    "no input": (["run=RUN", "output=y"], 2, "input: not set"),
    "input missing": (["run=RUN", "input=x", "output=y"], 3, "x: no such file or folder"),
    "no run folder": (["run=x", "input=SCANS", "output=y"], 2, "x: not a run folder"),
    "the same run twice": (["run=[RUN,RUN]", "input=SCANS", "output=y"], 2, "folder twice"),
    "a study without runs": (["study=data", "input=SCANS", "output=y"], 2, "study: no finished"),
    "an unknown flip": (["run=RUN", "input=SCANS", "output=y", "flips=[d]"], 2, "flips"),
    "tiles that overlap wholly": (["run=RUN", "input=SCANS", "output=y", "tiles=1"], 2, "tiles"),
    "an unknown class": (
        ["run=RUN", "input=SCANS", "output=y", "postprocess.min_ml={stomack:1}"],
        2, "postprocess.min_ml: no class 'stomack'; did you mean stomach?",
    ),
    "a volume below 0": (
        ["run=RUN", "input=SCANS", "output=y", "postprocess.min_ml=-1"], 2, "postprocess.min_ml",
    ),
    "an option misspelt": (["run=RUN", "input=SCANS", "output=y", "flip=[h]"], 2, "mean flips?"),
    "output is the input": (["run=RUN", "input=SCANS", "output=SCANS"], 2, "output: "),
    "output has other things": (["run=RUN", "input=SCANS", "output=outputs"], 2, "holds other"),
    "not exported": (["run=RUN", "input=SCANS", "output=y", "backend=onnx"], 2, "nothing was exp"),
    "no capsule": (["capsule=x.zip", "input=SCANS", "output=y"], 4, "x.zip: "),
    "a GPU where there is none": (
        ["run=RUN", "input=SCANS", "output=y", "device=cuda"], 2, "device: no GPU",
    ),
    "a GPU for ONNX": (
        ["run=RUN", "input=SCANS", "output=y", "device=cuda", "backend=onnx"], 2, "device: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_prediction(place, run, capfd, fault):
    words, code, message = FAULTS[fault]
    known = {"RUN": str(run), "SCANS": str(scans(place))}
    for name, value in known.items():
        words = [word.replace(name, value) for word in words]
    capfd.readouterr()
    assert command("predict", *words) == code
    told = capfd.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not Path("y").exists()


def test_a_run_that_cannot_predict(place, run, capfd):
    words = ["predict", f"run={run}", f"input={scans(place)}", "output=y"]
    facts = json.loads((run / "run.json").read_text())
    kept = (run / "checkpoints/best.ckpt").read_bytes()
    data = facts.pop("data")
    broken = {
        "before runs noted": (facts, kept, 2),
        "unlike its SHA-256": ({**facts, "data": data}, kept[:-1] + b"x", 4),
        "weights of another model": ({**facts, "data": {**data, "channels": 2}}, kept, 4),
        "not an inference spec": ({**facts, "data": {**data, "classes": []}}, kept, 4),
        "best.ckpt: not found": ({**facts, "data": data}, None, 4),
    }
    for message, (told, weights, code) in broken.items():
        (run / "run.json").write_text(json.dumps(told))
        if weights is None:
            (run / "checkpoints/best.ckpt").unlink()
        else:
            (run / "checkpoints/best.ckpt").write_bytes(weights)
        capfd.readouterr()
        assert command(*words) == code, message
        assert message in capfd.readouterr().err
    assert not Path("y").exists()


def test_twenty_good_and_five_bad_by_the_command(place, run, capfd):
    """20 masks, 5 named, exit code 3; what is mended is done, the rest not again."""
    source = sorted(scans(place).glob("case*/case*_day*"))[0]
    for number in range(20):
        shutil.copytree(source, place / f"in/case{number}/case{number}_day0")
    for number in range(20, 25):
        shutil.copytree(source, place / f"in/case{number}/case{number}_day0")
        first = sorted((place / f"in/case{number}/case{number}_day0/scans").iterdir())[0]
        first.write_bytes(first.read_bytes()[: 40 * (number - 19)])
    words = ["predict", f"run={run}", "input=in", "output=out", "overlays=false"]
    assert command(*words) == 3
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 6
    assert sum(f"case{n}_day0/scans/" in line for n in range(20, 25) for line in told[:5]) == 5
    assert told[5] == "error: input: 5 problems, listed above; 20 others are done: out"
    assert len(list(Path("out/masks").rglob("*.csv"))) == 20
    for number in range(20, 25):
        shutil.rmtree(f"in/case{number}")
    assert command(*words) == 0
    assert "20 items were done before" in capfd.readouterr().out
