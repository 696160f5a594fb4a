"""Scoring what is finished, and what the tables of all commands must say."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from attnseg import cli

PROFILES = ["strict", "transunet", "monai", "nnunet", "isic", "isic_pooled", "uw_madison"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with one finished smoke run."""
    import sys

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py", "experiment=smoke", "attn=kv"])
        cli.train()
    assert ended.value.code == 0
    return folder


@pytest.fixture
def run(finished, call, tmp_path):
    """The run in an empty folder of its own, where commands are called; its path."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.glob("outputs/*/*/*/*/run.json")
    return path.parent.relative_to(tmp_path)


def test_a_run_scored_again_has_the_same_numbers(run, call, tmp_path):
    for split in ("val", "test"):
        answer = call(f"run={run}", f"split={split}", command=cli.evaluate)
        assert answer.code == 0, answer.err
        then = json.loads((run / "metrics.json").read_text())[split]
        now = json.loads((run / "evaluation" / split / "metrics.json").read_text())
        strict = now["profiles"]["strict"]
        assert strict["mean"] == then["mean"]
        assert strict["classes"] == then["classes"]
        with Image.open(run / "evaluation" / split / "worst-1.png") as image:
            assert min(image.size) > 300
    ledger = next(tmp_path.glob("outputs/*/test_openings.jsonl")).read_text().splitlines()
    assert len(ledger) == 2
    assert "evaluate strict" in ledger[1]
    assert "Openings of these test cases so far: 2" in answer.out


def test_every_profile_scores_a_run(run, call):
    answer = call(f"run={run}", f"profile={','.join(PROFILES)}", "split=val", command=cli.evaluate)
    assert answer.code == 0, answer.err
    found = json.loads((run / "evaluation/val/metrics.json").read_text())
    assert list(found["profiles"]) == PROFILES
    cases = pd.read_csv(run / "evaluation/val/cases.csv")
    assert set(cases["profile"]) == set(PROFILES)
    assert {"ece", "brier"} <= set(cases["metric"])
    for name, part in found["profiles"].items():
        assert part["profile"]["name"] == name
        assert f"profile {name} ({part['profile']['digest']})" in answer.out


@pytest.mark.parametrize("pipeline", ["zoom", "network_size"])
def test_published_pipelines_run(run, call, pipeline):
    answer = call(f"run={run}", "split=val", f"pipeline={pipeline}", command=cli.evaluate)
    assert answer.code == 0, answer.err
    text = (run / "evaluation/val/metrics.json").read_text()
    assert json.loads(text)["pipeline"].startswith(f"{pipeline}: as ")


def tables(text):
    """Title and header of every table in a command's output."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("┏"):
            start = at
            while start and not lines[start - 1].startswith(
                ("└", "Epoch", "Eval", "These", "Best")
            ):
                start -= 1
            end = next(i for i in range(at, len(lines)) if lines[i].startswith("┡"))
            yield " ".join(lines[start:at]), " ".join(lines[at + 1 : end])


def test_no_table_prints_a_number_without_profile_unit_and_count(run, call):
    out = [
        call("experiment=smoke", "seed=1").out,
        call(f"run={run}", f"profile={','.join(PROFILES)}", "split=val", command=cli.evaluate).out,
        call(
            f"run={run}", "profiles=strict,transunet,monai", "split=val", command=cli.metrics_diff
        ).out,
        call("experiment=smoke", command=cli.prepare).out,
    ]
    checked = 0
    for title, header in (table for text in out for table in tables(text)):
        words = re.sub(r"[┃│\s]+", " ", header)
        if not re.search("Dice|DSC|Jaccard|HD95|NSD|metric|score", words):
            continue
        checked += 1
        named = re.findall(r"(\w+) \([0-9a-f]{8}\)", re.sub(r"\s+", " ", title))
        rows = "mean" in words  # profiles are in the rows
        assert named or rows, title
        assert "undefined" in words or "undefined" in title, (title, words)
        for metric in re.findall(r"HD95 ?\(?\w*|NSD ?\(?\w*", words):
            assert re.search(r"\((mm|voxels|3)", metric), (metric, words)
    assert checked >= 2 + len(PROFILES) + 2


def test_difference_names_the_cases_and_why(run, call):
    answer = call(f"run={run}", "profiles=strict,transunet", "split=val", command=cli.metrics_diff)
    assert answer.code == 0, answer.err
    table = pd.read_csv(run / "evaluation/val/differences.csv")
    assert {"case", "class", "metric", "strict", "transunet", "spread", "why"} == set(table)
    assert (table["metric"] == "hd95").any()
    assert re.search(r"\d mm .*\d voxels", answer.out)
    alone = call(f"run={run}", "profiles=strict", command=cli.metrics_diff)
    assert (alone.code, "two profiles or more" in alone.err) == (2, True)


FAULTS = {
    "no run": (["run=nowhere"], 2, "nowhere: not a run folder"),
    "nothing to score": ([], 2, "run: give a run folder"),
    "half a pair": (["pred=x"], 2, "run: give a run folder"),
    "both": (["run=x", "pred=x", "truth=x"], 2, "run: give a run folder"),
    "unknown profile": (["run=x", "profile=strickt"], 2, "did you mean strict?"),
    "unknown split": (["run=x", "split=train"], 2, "split: 'train' is not allowed"),
    "no folder": (["pred=x", "truth=y"], 3, "y: no such folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_evaluation(call, fault):
    arguments, code, message = FAULTS[fault]
    answer = call(*arguments, command=cli.evaluate)
    assert (answer.code, answer.err.count("\n")) == (code, 1)
    assert message in answer.err


def test_a_run_whose_data_or_weights_have_changed_is_refused(run, call, tmp_path):
    checkpoint = run / "checkpoints/best.ckpt"
    kept = checkpoint.read_bytes()
    checkpoint.write_bytes(kept[:1000])
    answer = call(f"run={run}", "split=val", command=cli.evaluate)
    assert (answer.code, answer.err.count("\n")) == (4, 1)
    checkpoint.write_bytes(kept)
    image = sorted(tmp_path.glob("data/phantoms/*/train/*/*/scans/*.png"))[0]
    Image.fromarray(np.asarray(Image.open(image)) + np.uint16(1)).save(image)
    answer = call(f"run={run}", "split=val", command=cli.evaluate)
    assert (answer.code, answer.err.count("\n")) == (3, 1)
    assert "the data is not that of the run any more" in answer.err


def labels(seed=0, shape=(6, 20, 24)):
    rng = np.random.default_rng(seed)
    found = np.zeros(shape, np.uint8)
    found[1:4, 3:12, 4:14] = 1
    found[2:5, 10:18, 12:20] = 2
    moved = np.roll(found, rng.integers(0, 3), 2)
    return found, moved


def save(folder: Path, name: str, voxels, affine=None):
    folder.mkdir(exist_ok=True)
    if name.endswith(".png"):
        Image.fromarray(voxels).save(folder / name)
    else:
        nib.save(
            nib.Nifti1Image(voxels.T, np.diag([2, 2, 5, 1]) if affine is None else affine),
            folder / name,
        )


def test_other_peoples_masks_are_scored(call, tmp_path):
    for number in range(4):
        truth, moved = labels(number)
        save(tmp_path / "truth", f"p{number // 2}_scan {number}.nii.gz", truth)
        save(tmp_path / "pred", f"p{number // 2}_scan {number}.nii.gz", truth if number else moved)
    answer = call(
        "pred=pred", "truth=truth", "classes=[liver,spleen]", r"patient='^(p\d)'",
        "profile=strict,nnunet", "outputs=scored", command=cli.evaluate,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "scored/metrics.json").read_text())["profiles"]["strict"]
    assert (found["patients"], found["cases"]) == (2, 4)
    assert set(found["classes"]) == {"liver", "spleen"}
    cases = pd.read_csv(tmp_path / "scored/cases.csv")
    dice = cases[(cases["metric"] == "dice") & (cases["profile"] == "strict")]
    truth, moved = labels(0)
    expected = 2 * ((truth == 1) & (moved == 1)).sum() / (2 * (truth == 1).sum())
    value = dice[(dice["case"] == "p0_scan 0") & (dice["class"] == "liver")]["value"]
    assert value.item() == pytest.approx(expected)
    assert (dice[dice["case"] != "p0_scan 0"]["value"] == 1).all()
    shift = int(np.flatnonzero((moved == 1).any((0, 1)))[0]) - 4
    worst = cases[(cases["metric"] == "hd_mm") & (cases["class"] == "liver")]["value"].max()
    assert worst == pytest.approx(2.0 * shift)


def test_pictures_of_masks_are_scored(call, tmp_path):
    truth = np.zeros((20, 30), np.uint8)
    truth[5:10, 5:15] = 255
    save(tmp_path / "truth", "a.png", truth)
    save(tmp_path / "pred", "a.png", np.roll(truth, 5, 1))
    assert call("pred=pred", "truth=truth", command=cli.evaluate).code == 0
    found = json.loads(Path("outputs/evaluation/metrics.json").read_text())["profiles"]["strict"]
    assert found["classes"]["1"]["dice"] == 0.5
    assert found["mean"]["hd95_mm"] is None


def break_affine(folder):
    save(folder / "pred", "a.nii.gz", labels()[0], np.diag([2, 2, 4, 1]))


def break_size(folder):
    save(folder / "pred", "a.nii.gz", labels(shape=(5, 20, 24))[0])


def no_partner(folder):
    save(folder / "pred", "b.nii.gz", labels()[0])
    save(folder / "truth", "c.nii.gz", labels()[0])


def probabilities(folder):
    save(folder / "pred", "a.nii.gz", labels()[0] * np.float32(0.5))


BAD = {
    "another place": (break_affine, "their affines differ", 1),
    "another size": (break_size, "voxels, but a.nii.gz has", 1),
    "no partner": (no_partner, "no file of this name", 1),
    "not labels": (probabilities, "labels that are no whole numbers, such as ", 1),
}


@pytest.mark.parametrize("fault", BAD)
def test_masks_that_cannot_be_compared(call, tmp_path, fault):
    for folder in ("truth", "pred"):
        save(tmp_path / folder, "a.nii.gz", labels()[0])
    edit, message, lines = BAD[fault]
    edit(tmp_path)
    answer = call("pred=pred", "truth=truth", command=cli.evaluate)
    assert (answer.code, answer.err.count("\n")) == (3, lines)
    assert message in answer.err


def test_distances_during_training_only_where_asked(call, tmp_path):
    answer = call("experiment=smoke", "trainer.score_every=2", "trainer.max_epochs=3")
    assert answer.code == 0, answer.err
    (path,) = tmp_path.glob("outputs/*/*/*/*/history.csv")
    history = pd.read_csv(path)
    scored = history["val/strict/hd95_mm"].notna().tolist()
    assert scored[1]
    assert not scored[0]


def test_an_untrained_run_is_scored_with_the_weights_it_had(call, tmp_path):
    assert call("experiment=smoke", "trainer.max_epochs=0", "seed=7").code == 0
    (path,) = (p.parent for p in tmp_path.glob("outputs/*/*/*/*/run.json"))
    assert call(f"run={path}", "split=val", command=cli.evaluate).code == 0
    then = json.loads((path / "metrics.json").read_text())["val"]
    now = json.loads((path / "evaluation/val/metrics.json").read_text())
    assert now["profiles"]["strict"]["classes"] == then["classes"]


def test_a_flipped_bit_in_the_weights_is_noticed(run, call):
    checkpoint = run / "checkpoints/best.ckpt"
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    checkpoint.write_bytes(data)
    answer = call(f"run={run}", "split=val", command=cli.evaluate)
    assert (answer.code, answer.err.count("\n")) == (4, 1)
    assert "best.ckpt: missing or damaged, unlike its SHA-256" in answer.err
