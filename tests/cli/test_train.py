"""The main job through its command line."""

import json
import logging
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from attnseg.files import file_digest, is_whole
from tests.contracts.groups import names
from tests.data.uw_tree import Tree
from tests.limits import HANG

ROOT = Path(__file__).parents[2]
CLASSES = ["large_bowel", "small_bowel", "stomach"]


def only_run(outputs: Path) -> Path:
    (run,) = [path.parent for path in outputs.glob("*/*/*/*/run.json")]
    return run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, str]:
    """One `python train.py experiment=smoke` in a process of its own: its folder and output."""
    folder = tmp_path_factory.mktemp("smoke")
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "experiment=smoke", "attn=kv"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, done.stdout


def test_run_folder_is_complete(smoke):
    run = only_run(smoke[0] / "outputs")
    assert run.parts[-4:-1] == ("phantom", "setr", "kv")
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    kept = json.loads((run / "pictures" / "index.json").read_text())
    scored = pd.read_csv(run / "cases.csv", dtype=str).query("split == 'test'")["case"]
    assert [entry["case"] for entry in kept["cases"]] == list(scored.unique())
    assert any(name.startswith("tensorboard/events") for name in files)
    assert [name for name in files if not name.startswith(("pictures/", "tensorboard/"))] == [
        "cases.csv",
        "checkpoints/best.ckpt",
        "checkpoints/best.ckpt.sha256",
        "checkpoints/last.ckpt",
        "checkpoints/last.ckpt.sha256",
        "config.yaml",
        "history.csv",
        "metrics.json",
        "previews/best.png",
        "previews/median.png",
        "previews/worst.png",
        "run.json",
        "run.log",
        "split.csv",
    ]


def test_run_json_says_what_ran_and_what_it_cost(smoke):
    run = only_run(smoke[0] / "outputs")
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "done"
    assert facts["id"] == run.name
    assert facts["choices"]["attn"] == "kv"
    assert facts["parameters"]["total"] == sum(
        count for part, count in facts["parameters"].items() if part != "total"
    )
    assert facts["macs"] > 1e6
    assert 0 < facts["attention"]["macs"] < facts["macs"]
    assert 0 < facts["attention"]["parameters"] < facts["parameters"]["total"]
    assert facts["peak_memory_bytes"] > 1e8
    assert 0 < facts["seconds"]["fit"] < facts["seconds"]["total"]
    assert facts["profile"]["name"] == "strict"
    assert {"torch", "monai", "attnseg"} <= set(facts["versions"])
    for name, digest in facts["checkpoints"].items():
        assert file_digest(run / "checkpoints" / name) == digest


def test_last_checkpoint_is_of_the_last_epoch_and_best_of_the_best(smoke):
    run = only_run(smoke[0] / "outputs")
    epochs = {
        name: torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["epoch"] + 1
        for name in ("last", "best")
    }
    history = pd.read_csv(run / "history.csv").set_index("epoch")
    assert epochs == {"last": 2, "best": history["val/dice"].idxmax()}
    assert json.loads((run / "run.json").read_text())["best_epoch"] == epochs["best"]


def test_metrics_are_the_means_of_the_cases(smoke):
    run = only_run(smoke[0] / "outputs")
    cases = pd.read_csv(run / "cases.csv")
    split = pd.read_csv(run / "split.csv")
    metrics = json.loads((run / "metrics.json").read_text())
    for role in ("val", "test"):
        wanted = set(split[split["role"] == role]["case"])
        rows = cases[cases["split"] == role]
        assert set(rows["case"]) == wanted
        assert rows.groupby(["case", "class", "metric"]).size().max() == 1
        for metric, values in rows.groupby("metric"):
            if metric not in metrics[role]["mean"]:
                assert metric in ("truth_voxels", "predicted_voxels")
                continue
            by_class = values.groupby("class")["value"].mean()
            for name in CLASSES:
                assert metrics[role]["classes"][name][metric] == pytest.approx(by_class[name])
            assert metrics[role]["mean"][metric] == pytest.approx(by_class.mean())
    assert metrics["profile"]["digest"]


def test_history_and_output_have_a_line_per_epoch(smoke):
    folder, out = smoke
    history = pd.read_csv(only_run(folder / "outputs") / "history.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert {"lr", "train/loss", "val/loss", "val/dice", "val/dice/stomach"} <= set(history)
    assert len(re.findall(r"(?m)^Epoch \d/2: train loss .* val Dice .* left$", out)) == 2
    assert re.search(r"(?m)^Epoch 1/2: (\d+)/\1 batches, loss \d", out)  # readable when piped
    assert "\x1b" not in out
    assert "\r" not in out
    assert out.count("profile strict") == 2


def test_pictures_can_be_opened(smoke):
    for path in (only_run(smoke[0] / "outputs") / "previews").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 100


def test_the_same_command_gives_the_same_numbers_in_a_folder_of_its_own(smoke, call, tmp_path):
    for _ in range(2):
        assert call("experiment=smoke", "attn=kv", "trainer.repeat=true").code == 0
    first = only_run(smoke[0] / "outputs")
    again = sorted(path.parent for path in tmp_path.glob("outputs/*/*/*/*/run.json"))
    assert [run.name for run in again] == [first.name, f"{first.name}-2"]
    for run in again:
        for name in ("metrics.json", "cases.csv", "split.csv"):
            assert (run / name).read_bytes() == (first / name).read_bytes()
        weights = [torch.load(r / "checkpoints/last.ckpt", weights_only=True) for r in (first, run)]
        for name, value in weights[0]["state_dict"].items():
            assert torch.equal(value, weights[1]["state_dict"][name]), name


def test_another_seed_gives_other_numbers(smoke, call, tmp_path):
    assert call("experiment=smoke", "attn=kv", "seed=1").code == 0
    first, other = only_run(smoke[0] / "outputs"), only_run(tmp_path / "outputs")
    assert other.name != first.name
    assert (other / "metrics.json").read_bytes() != (first / "metrics.json").read_bytes()
    assert (other / "split.csv").read_bytes() == (first / "split.csv").read_bytes()


def test_multirun_of_attentions_of_every_kind(call, tmp_path):
    # One of each kind: softmax, linear, of channels, of fewer keys, no attention at all.
    attentions = ["efficient", "identity", "kv", "spatial_reduction", "transpose"]
    answer = call("-m", "experiment=smoke", f"attn={','.join(attentions)}", "trainer.max_epochs=1")
    assert answer.code == 0
    assert f"{len(attentions)} done" in answer.out
    runs = [path.parent for path in tmp_path.glob("outputs/*/*/*/*/metrics.json")]
    assert sorted(run.parent.name for run in runs) == attentions


def test_a_failed_job_does_not_take_the_others_along(call, tmp_path):
    answer = call("-m", "experiment=smoke", "model.head=naive,nope,pup", "trainer.max_epochs=0")
    assert answer.code == 2
    assert "unknown head 'nope'" in answer.err
    assert "2 done, 1 failed" in answer.out
    assert len(list(tmp_path.glob("outputs/*/*/*/*/metrics.json"))) == 2


def test_real_download_by_root_alone(call, tmp_path, phantom):
    answer = call("experiment=smoke", "dataset=uw_madison", f"dataset.root={phantom}")
    assert answer.code == 0, answer.err
    run = only_run(tmp_path / "outputs")
    assert run.parts[-4] == "uw_madison"
    assert len(pd.read_csv(run / "split.csv")) == 8  # all but one that is excluded


def test_excluded_scans_are_named(call, tmp_path):
    tree = Tree(tmp_path / "root", tuple(f"case{n}_day0" for n in (1, 2, 3, 7, 8)))
    for scan in (1, 2, 3, 7, 8):
        for organ in CLASSES:
            tree.rows[f"case{scan}_day0_slice_0002", organ] = "7 3"
    answer = call(
        "experiment=smoke",
        "dataset=uw_madison",
        f"dataset.root={tree.write()}",
        "trainer.max_epochs=0",
        "dataset.batch_size=2",
    )
    assert answer.code == 0, answer.err
    assert "Excluded, as listed in dataset.exclude: case7_day0" in answer.out
    assert "case7" not in (only_run(tmp_path / "outputs") / "split.csv").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.accumulate=3", "optimizer=sgd", "scheduler=poly"],
        ["trainer.precision=bf16-mixed", "scheduler=constant", "loss=focal"],
        ["trainer.num_workers=2", "augment=none", "trainer.ema_decay=0.9"],
        ["trainer=debug", "model.head=mla", "loss=tversky"],
        ["model=cvt", "model.match=params", "trainer.limit_batches=1"],
        ["trainer.monitor=val/loss", "trainer.gradient_clip=null", "model.head=naive"],
    ],
    ids=" ".join,
)
def test_engine_options_run(call, tmp_path, options):
    answer = call("experiment=smoke", "attn=kv_pos", *options)
    assert answer.code == 0, answer.err
    assert json.loads((only_run(tmp_path / "outputs") / "run.json").read_text())["status"] == "done"


def test_averaged_weights_are_the_ones_evaluated(call, tmp_path):
    """With a decay of nearly 1 the average stays near the start, so the scores do, too."""
    assert call("experiment=smoke", "trainer.ema_decay=0.999999", "seed=3").code == 0
    assert call("experiment=smoke", "trainer.max_epochs=0", "seed=3").code == 0
    paths = list(tmp_path.glob("outputs/*/*/*/*/cases.csv"))
    averaged, initial = map(pd.read_csv, sorted(paths, key=lambda path: path.stat().st_mtime))
    dice = [
        t[(t["metric"] == "dice") & (t["split"] == "test")]["value"] for t in (averaged, initial)
    ]
    assert dice[0].to_numpy() == pytest.approx(dice[1].to_numpy(), abs=0.1)


def test_early_stopping_ends_a_run_that_does_not_improve(call, tmp_path):
    answer = call(
        "experiment=smoke", "optimizer.lr=1e-30", "trainer.early_stopping=1", "trainer.max_epochs=9"
    )
    assert answer.code == 0
    assert len(pd.read_csv(only_run(tmp_path / "outputs") / "history.csv")) < 9


def test_two_processes_train_together(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "experiment=smoke", "trainer=ddp",
         "trainer.accelerator=cpu", "trainer.precision=32", "trainer.num_workers=0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "outputs")
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert len(pd.read_csv(run / "history.csv")) == 2
    assert done.stdout.count("profile strict") == 2


@pytest.mark.parametrize(("name", "code", "epoch"), [("SIGINT", 130, 1), ("SIGTERM", 143, 2)])
def test_signals_end_a_run_with_their_code(tmp_path, name, code, epoch):
    command = [sys.executable, ROOT / "train.py", "experiment=smoke", "trainer.max_epochs=1000"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and their children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for line in process.stdout:
            if line.startswith(f"Epoch {epoch}/"):
                process.send_signal(getattr(signal, name))
                break
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    run = only_run(tmp_path / "outputs")
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert is_whole(run / "checkpoints/last.ckpt")
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] >= 0


def test_help_lists_every_choice(call):
    answer = call("--help")
    assert answer.code == 0
    for group in (
        "attn",
        "augment",
        "dataset",
        "loss",
        "model",
        "optimizer",
        "scheduler",
        "trainer",
    ):
        assert f"\n{group}: {', '.join(names(group))}\n" in answer.out


def test_help_and_mistakes_need_no_torch():
    code = (
        "import sys; sys.argv = ['train.py', 'optimizer.lrr=1']\n"
        "from attnseg.cli import train\n"
        "try:\n    train()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG
    )
    assert done.stdout == "2 False\n"


def test_logging_of_others_is_left_alone(call):
    before = logging.getLogger().handlers[:]
    call("--help")
    assert logging.getLogger().handlers == before
