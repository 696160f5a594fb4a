"""Datasets through the command line: each trains on its phantom, leaks and faults are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from attnseg import cli
from attnseg.probes.probe import list_probes
from tests.contracts.groups import names
from tests.data.uw_tree import CLASSES, Tree

# Two of the probes stand for all, which have one reader and one maker.
SLOW = {f"probe_{name}" for name in list_probes()} - {"probe_reach", "probe_resolution"}
DATASETS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in names("dataset")
]


def run_of(folder: Path) -> Path:
    (run,) = [path.parent for path in folder.glob("outputs/*/*/*/*/run.json")]
    return run


def metrics_of(folder: Path):
    return json.loads((run_of(folder) / "metrics.json").read_text())


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_trains_on_its_phantom(call, tmp_path, dataset):
    answer = call("experiment=smoke", f"dataset={dataset}", "trainer.max_epochs=1", "attn=kv")
    assert answer.code == 0, answer.err
    run = run_of(tmp_path)
    assert run.parts[-4] == ("phantom" if dataset == "phantom" else f"{dataset}-phantom")
    split = pd.read_csv(run / "split.csv")
    assert split.groupby("patient")["role"].nunique().max() == 1
    assert metrics_of(tmp_path)["test"]["cases"] == (split["role"] == "test").sum()
    assert all(path.stat().st_size > 10_000 for path in (run / "previews").iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ["dataset=synapse", "dataset.slices=3", "dataset.stride=2"],
        ["dataset=phantom", "dataset.slices=5", "dataset.foreground=0.5"],
        ["dataset=nnunet", "dataset.slices=3", "dataset.plane=coronal", "augment=strong"],
        ["dataset=synapse", "dataset.organs=13", "augment=dae_former"],
        ["dataset=synapse", "dataset.order=cascade", "dataset.phantom.layout=package"],
        [
            "dataset=phantom",
            "dataset.limit_cases=null",
            "dataset.split.folds=3",
            "augment=transunet",
        ],
    ],
    ids=" ".join,
)
def test_options_of_datasets_run(call, tmp_path, options):
    answer = call("experiment=smoke", "trainer.max_epochs=1", *options)
    assert answer.code == 0, answer.err
    assert metrics_of(tmp_path)["test"]["cases"] > 0


def test_unknown_spacing_leaves_distances_undefined(call, tmp_path):
    assert call("experiment=smoke", "dataset=isic2018", "trainer.max_epochs=0").code == 0
    mean = metrics_of(tmp_path)["test"]["mean"]
    assert mean["hd95_mm"] is None
    assert mean["nsd"] is None
    assert mean["dice"] is not None


def three_scans(tmp_path, seed=7):
    """A download of seven patients, each of three noisy slices of 40 x 36 pixels, organs in all."""
    tree = Tree(tmp_path / "root", tuple(f"case{n}_day0" for n in range(1, 8)))
    rng = np.random.default_rng(seed)
    tree.files = {
        name.replace("_5_4_", "_40_36_"): rng.integers(0, 3000, (36, 40)).astype(np.uint16)
        for name in tree.files
    }
    for key in list(tree.rows):
        tree.rows[key] = f"{rng.integers(1, 200)} 40"
    return tree


def train(call, root, *options):
    return call(
        "experiment=smoke", "dataset=uw_madison", f"dataset.root={root}", "trainer.max_epochs=0",
        "dataset.exclude=[]", "dataset.limit_cases=null", "dataset.batch_size=2", *options,
    )  # fmt: skip


def roles(tmp_path):
    split = pd.read_csv(run_of(tmp_path) / "split.csv")
    return dict(zip(split["case"], split["role"], strict=True))


@pytest.fixture
def split(call, tmp_path):
    """The roles of a clean download, the download, and its folder of slices."""
    tree = three_scans(tmp_path)
    tree.write()
    assert train(call, tree.root).code == 0
    drawn = roles(tmp_path)
    shutil.rmtree(tmp_path / "outputs")
    return drawn, tree


def one_of(drawn, role):
    return next(case for case, found in drawn.items() if found == role)


def slice_path(tree, case, number="0001"):
    return tree.path(f"{case}/scans/slice_{number}_40_36_1.50_1.63.png")


def test_a_duplicate_patient_is_refused(call, tmp_path, split):
    drawn, tree = split
    source, target = one_of(drawn, "test"), one_of(drawn, "train")
    for number in ("0001", "0002", "0010"):
        shutil.copy(slice_path(tree, source, number), slice_path(tree, target, number))
    answer = train(call, tree.root)
    assert (answer.code, answer.err.count("\n")) == (3, 1)
    assert "the same pixels in" in answer.err
    assert f"{source}/scans/slice" in answer.err
    assert f"{target}/scans/slice" in answer.err
    assert not list(tmp_path.glob("outputs/*/*"))


def test_a_single_image_under_another_name_is_refused(call, tmp_path, split):
    drawn, tree = split
    source, target = one_of(drawn, "val"), one_of(drawn, "train")
    shutil.copy(slice_path(tree, source, "0002"), slice_path(tree, target, "0010"))
    answer = train(call, tree.root)
    assert answer.code == 3
    assert str(slice_path(tree, source, "0002")) in answer.err
    assert str(slice_path(tree, target, "0010")) in answer.err


def test_a_near_duplicate_is_refused_grouped_or_dropped(call, tmp_path, split):
    drawn, tree = split
    source, target = one_of(drawn, "test"), one_of(drawn, "train")
    pixels = np.asarray(Image.open(slice_path(tree, source))).astype(float)
    noise = np.random.default_rng(1).normal(0, 60, pixels.shape)
    recoded = (pixels * 0.7 + 200 + noise).clip(0).astype(np.uint16)
    Image.fromarray(recoded).save(slice_path(tree, target, "0010"))
    answer = train(call, tree.root)
    assert answer.code == 3
    assert "nearly the same picture" in answer.err
    assert str(slice_path(tree, source)) in answer.err
    assert str(slice_path(tree, target, "0010")) in answer.err
    assert train(call, tree.root, "dataset.split.duplicates=group").code == 0
    together = roles(tmp_path)
    assert together[source] == together[target]
    shutil.rmtree(tmp_path / "outputs")
    answer = train(call, tree.root, "dataset.split.duplicates=drop")
    assert answer.code == 0
    assert f"left out, since another role has the same picture: {target}" in answer.out
    assert target not in roles(tmp_path)
    assert roles(tmp_path)[source] == "test"


def test_a_split_file_is_taken_back_and_refused_with_a_patient_on_two_sides(call, tmp_path, split):
    drawn, tree = split
    assert train(call, tree.root, "dataset.split.seed=5").code == 0
    other = roles(tmp_path)
    assert other != drawn
    shutil.move(run_of(tmp_path) / "split.csv", tmp_path / "mine.csv")
    shutil.rmtree(tmp_path / "outputs")
    mine = f"dataset.split.file={tmp_path / 'mine.csv'}"
    assert train(call, tree.root, mine).code == 0
    assert roles(tmp_path) == other
    text = (tmp_path / "mine.csv").read_text()
    (tmp_path / "mine.csv").write_text(text + "case1,case1_day9,test,\ncase1,case1_day8,train,\n")
    answer = train(call, tree.root, mine)
    assert answer.code == 3
    assert "patient case1 in test and train" in answer.err
    changed = text.replace(text.splitlines()[1].split(",")[3], "0" * 64)
    (tmp_path / "mine.csv").write_text(changed)
    assert "has changed since the split was written" in train(call, tree.root, mine).err


def test_training_never_reads_the_test_set_and_openings_are_counted(call, tmp_path, split):
    drawn, tree = split
    held = [case for case, role in drawn.items() if role == "test"]
    closed = train(call, tree.root, "trainer.open_test=false")
    assert closed.code == 0
    assert "The test set stays closed" in closed.out
    assert not list(tmp_path.glob("outputs/*/test_openings.jsonl"))
    assert set(metrics_of(tmp_path)) == {"profile", "val"}
    shutil.rmtree(tmp_path / "outputs")
    # Once prepared, the voxels of the test cases are out of reach of everything but the scoring.
    for case in held:
        for array in tmp_path.glob(f"data/prepared/*/case-{case}/[im]*.npy"):
            array.unlink()
    options = ["trainer.max_epochs=1", "trainer.open_test=false"]
    assert train(call, tree.root, *options).code == 0
    assert train(call, tree.root, "trainer.max_epochs=1").code == 3
    ledger = next(tmp_path.glob("outputs/*/test_openings.jsonl"))
    assert len(ledger.read_text().splitlines()) == 1


def test_openings_are_said_in_the_report(call, tmp_path):
    for number in (1, 2):
        answer = call("experiment=smoke", "trainer.max_epochs=0", f"seed={number}")
        assert f"Openings of these test cases so far: {number}" in answer.out
    facts = [json.loads(p.read_text()) for p in tmp_path.glob("outputs/*/*/*/*/run.json")]
    assert sorted(fact["test_set"]["openings"] for fact in facts) == [1, 2]


def test_the_published_protocol_marks_every_number(call, tmp_path):
    answer = call("experiment=smoke", "dataset=synapse_published", "attn=kv")
    assert answer.code == 0, answer.err
    run = run_of(tmp_path)
    mark = "TEST SET WATCHED"
    assert answer.out.count(mark) >= 2
    assert "WATCHED TEST Dice" in answer.out
    assert " val Dice" not in answer.out
    assert metrics_of(tmp_path)["watermark"].startswith(mark)
    assert "val" not in metrics_of(tmp_path)
    for table in ("cases.csv", "history.csv"):
        assert pd.read_csv(run / table)["watermark"].str.startswith(mark).all()
    assert json.loads((run / "run.json").read_text())["watermark"].startswith(mark)
    assert set(pd.read_csv(run / "split.csv")["role"]) == {"train", "test"}
    ledger = next(tmp_path.glob("outputs/*/test_openings.jsonl")).read_text()
    assert "watched after every epoch" in ledger


def test_all_problems_are_found_at_once(tmp_path, call):
    tree = three_scans(tmp_path)
    tree.rows["case2_day0_slice_0002", "stomach"] = "1 2 3"
    tree.rows["case3_day0_slice_0001", CLASSES[0]] = "0 3"
    tree.write()
    slice_path(tree, "case3_day0", "0010").write_text("hello")
    answer = train(call, tree.root)
    assert answer.code == 3
    assert "and 2 more problems" in answer.err


def test_prepare_lists_every_problem_with_its_file(call, tmp_path):
    tree = three_scans(tmp_path)
    tree.rows["case2_day0_slice_0002", "stomach"] = "1 2 3"
    tree.rows["case3_day0_slice_0001", CLASSES[0]] = "0 3"
    tree.rows["case3_day0_slice_0001", CLASSES[1]] = "x 3"
    tree.write()
    slice_path(tree, "case3_day0", "0010").write_text("hello")
    options = ("dataset=uw_madison", f"dataset.root={tree.root}")
    answer = call(*options, command=cli.prepare)
    assert answer.code == 3
    lines = answer.err.splitlines()
    assert len(lines) == 5
    for text in (
        "0002, stomach: 3 numbers",
        "run 0 3 is",
        "'x' in the",
        "0010_40_36_1.50_1.63.png: not",
    ):
        assert sum(text in line for line in lines) == 1
    assert lines[-1].startswith("error: dataset: 4 problems, listed above; mend the files")
    good = call(*options, "dataset.exclude=[case2_day0,case3_day0]", command=cli.prepare)
    assert good.code == 0, good.err


def test_prepare_describes_the_data_as_they_are(call, tmp_path):
    tree = three_scans(tmp_path)
    for key in list(tree.rows):
        tree.rows[key] = "1 40" if key[1] == "stomach" else ""
    tree.rows["case1_day0_slice_0002", "large_bowel"] = "31 20"  # 10 pixels of it in the stomach
    tree.write()
    answer = call(
        "dataset=uw_madison", f"dataset.root={tree.root}", "dataset.exclude=[]", command=cli.prepare
    )
    assert answer.code == 0, answer.err
    (page,) = tmp_path.glob("data/prepared/*/fingerprint.png")
    with Image.open(page) as image:
        assert min(image.size) > 900
    facts = json.loads(page.with_suffix(".json").read_text())
    assert facts["counts"] == {"patients": 7, "cases": 7, "slices": 21}
    assert facts["sizes"] == {"36x40": 7}
    assert [axis["median"] for axis in facts["spacing_mm"]] == [3.0, 1.63, 1.5]
    stomach, bowel = facts["classes"]["stomach"], facts["classes"]["large_bowel"]
    assert (stomach["voxels"], stomach["cases"], stomach["slices"]) == (40 * 21, 7, 21)
    assert stomach["volume_ml"]["max"] == pytest.approx(120 * 3 * 1.63 * 1.5 / 1000, abs=1e-4)
    assert (bowel["voxels"], bowel["cases"], bowel["slices"]) == (20, 1, 1)
    assert facts["overlaps"] == {"large_bowel & stomach": 10}
    pixels = np.concatenate([p.ravel() for n, p in tree.files.items() if "case4_" in n])
    assert facts["intensities"][0]["50%"]["min"] <= np.median(pixels)
    roles = {row["patient"]: row["role"] for row in facts["patients"]}
    assert set(roles.values()) == {"train", "val", "test"}
    assert "all but large_bowel, small_bowel" in answer.out


def test_prepare_is_resumed_and_changes_nothing_the_second_time(call, tmp_path):
    options = ("experiment=smoke", "dataset=isic2018")
    assert "Preparing" in call(*options, command=cli.prepare).out
    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("data/prepared/*/case-*/*")}
    broken = sorted(tmp_path.glob("data/prepared/*/case-*/case.json"))[3]
    text = broken.read_text()
    broken.write_text(text[:50])
    answer = call(*options, command=cli.prepare)
    assert "Preparing: 1/1 cases" in answer.out
    again = {p: p.stat().st_mtime_ns for p in tmp_path.glob("data/prepared/*/case-*/*")}
    assert set(again) == set(written)
    assert {p.parent for p in written if again[p] != written[p]} == {broken.parent}
    assert broken.read_text() == text


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_has_a_phantom_and_a_contact_sheet(call, tmp_path, dataset):
    made = call(f"dataset={dataset}", "phantom_size=tiny", command=cli.phantom)
    assert made.code == 0, made.err
    root = Path(made.out.splitlines()[-1])
    assert (root / "phantom.json").is_file()
    drawn = call(
        f"dataset={dataset}", f"dataset.root={root}", "augment=strong", command=cli.preview
    )
    assert drawn.code == 0, drawn.err
    with Image.open(drawn.out.splitlines()[-1]) as image:
        assert image.size[0] > 1000
