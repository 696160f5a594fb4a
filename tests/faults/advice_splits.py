"""Trials of the messages of `data` and `preparation`: splits, the store, checks of any case."""

import copy
import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from attnseg.cli.hydra_app import compose_raw
from attnseg.commands import train
from attnseg.config.training import Config
from attnseg.data import splits, store
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.folders import warn_of_groups
from attnseg.data.labels import Labels
from attnseg.data.reader import Case, CaseRef, Reader, check_case
from attnseg.preparation.datasets import load_dataset, make_phantom, open_reader, slice_view
from tests.data.test_splits import FOLDS, small_dataset
from tests.faults.advice import Trial, place_of, restore
from tests.faults.advice_data import folder_at


@cache
def composed(*choices: str) -> dict[str, Any]:
    return compose_raw(train.COMMAND, choices)


def configure(trial: Trial, *choices: str) -> Config:
    """Return the configuration of a training run on the files of a trial."""
    raw = copy.deepcopy(composed(*choices))
    paths = {f"paths.{name}": str(trial.folder / name) for name in ("data", "outputs")}
    for key, value in (paths | trial.keywords).items():
        node = raw
        *parents, last = key.split(".")
        for name in parents:
            node = node[name]
        node[last] = value
    return train.COMMAND.parse(raw)


NNUNET = ("dataset=nnunet", "dataset.root=x")
CASES = ("a", "b", "c", "d", "e", "f")


def load(trial: Trial, root: str = "root") -> None:
    """Load a dataset, whose root is within the trial's folder; a split file, too."""
    chosen = trial.options
    trial.options = f"dataset.root={trial.folder / root} {chosen}".replace("ROOT", str(trial.root))
    config = configure(trial, *NNUNET)
    trial.options = chosen

    for case in load_dataset(config, open_reader(config)).train:
        assert case.image.size


def dataset(root: Path, cases: tuple[str, ...] = CASES) -> None:
    small_dataset(root, cases)


def all_alike(root: Path) -> None:
    for part, end in (("imagesTr", "_0000"), ("labelsTr", "")):
        for name in CASES[1:4]:
            shutil.copy(root / part / f"a{end}.nii.gz", root / part / f"{name}{end}.nii.gz")


def split_file(text: str, name: str = "split.csv") -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text) and None


def clear_digest(trial: Trial, text: str) -> None:
    path = place_of(trial, text)
    path.write_text(re.sub(r"[0-9a-f]{64}", "", path.read_text()))


def give_one_role(trial: Trial, text: str) -> None:
    path = place_of(trial, text)
    path.write_text(re.sub("(val|test),", "train,", path.read_text()))


HEAD = "patient,case,role,digest\n"
GOOD = HEAD + "".join(
    f"{case},{case},{role},\n"
    for case, role in zip(CASES, 2 * ["train", "val", "test"], strict=True)
)


def with_split(root: Path) -> None:
    dataset(root)
    (root / "split.csv").write_text(GOOD)
    (root / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}] * 2))


def read_split(name: str) -> Callable[[Trial], None]:
    return lambda trial: (
        splits.read_split(trial.root / name, trial.keywords.get("fold", 0)) and None
    )


def small_split(root: Path) -> None:
    (root / "split.csv").write_text(GOOD)
    (root / "splits_final.json").write_text(json.dumps(FOLDS))


def split_trial(text: str, name: str = "split.csv", **follow: Any) -> Trial:
    def attempt(trial: Trial) -> None:
        splits.read_split(trial.root / name)

    return Trial(attempt, make=small_split, damage=split_file(text, name), follow=follow)


def use_role(trial: Trial, text: str) -> None:
    path = place_of(trial, text)
    match = re.search(r"role '(\w+)'; use (\w+)", text)
    path.write_text(path.read_text().replace(f",{match[1]},", f",{match[2]},"))


def list_once(trial: Trial, text: str) -> None:
    path = place_of(trial, text)
    if path.suffix == ".json":
        path.write_text(path.read_text().replace('"a", "a"', '"a"'))
        return
    path.write_text("".join(dict.fromkeys(path.read_text().splitlines(keepends=True))))


SPLITS = {
    "role": split_trial(HEAD + "a,a,training,\n", role=use_role),
    "case twice": split_trial(HEAD + "a,a,train,\na,a,train,\n", twice=list_once),
    "two roles": split_trial(HEAD + "a,a,train,\na,b,test,\n", **{"one role": give_one_role}),
    "ragged": split_trial(HEAD + "a,a,train,,x\n"),
    "columns": split_trial("patient;case\n"),
    "no text": split_trial(HEAD + "\0" * 9 + '"' + "x" * 140_000, **{"give a CSV": restore}),
    "no JSON": split_trial("{", "splits_final.json"),
    "no folds": split_trial("[1]", "splits_final.json"),
    "a case twice": split_trial(
        '[{"train": ["a", "a"], "val": ["b"]}]', "splits_final.json", twice=list_once
    ),
    "fold": Trial(
        lambda trial: splits.read_split(trial.root / "splits_final.json", trial.keywords["fold"]),
        "fold=7",
        make=small_split,
        follow={r"use 0 to (\d+)": "fold={1}"},
    ),
}


class Arrays(Reader):
    """Reads a case from two arrays, whatever they hold."""

    labels, channels = Labels(("organ",)), 1

    def __init__(self, root: Path) -> None:
        self.root = root

    def cases(self) -> list[CaseRef]:
        return [CaseRef("a", "a", (self.root / "a.image.npy", self.root / "a.mask.npy"))]

    def read(self, ref: CaseRef) -> Case:
        image, mask = (np.load(path) for path in ref.files)
        return Case(image, mask, None)


def check_arrays(trial: Trial) -> None:
    reader = Arrays(trial.root)
    for ref in () if trial.exclude else reader.cases():
        try:
            check_case(reader.read(ref), ref, reader)
        except TypeError as error:  # of a reader that somebody writes
            raise ValueError(error) from error


def arrays(image: Any = None, mask: Any = None) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        np.save(root / "a.image.npy", np.zeros((2, 4, 4, 1), np.uint8) if image is None else image)
        np.save(root / "a.mask.npy", np.zeros((2, 4, 4), np.uint8) if mask is None else mask)

    return write


FLOAT = np.full((2, 4, 4, 1), np.nan, np.float32)
CHECKED = {
    name: Trial(check_arrays, make=arrays(), damage=damage)
    for name, damage in {
        "shapes": arrays(mask=np.zeros((2, 4, 5), np.uint8)),
        "channels": arrays(np.zeros((2, 4, 4, 2), np.uint8)),
        "NaN": arrays(FLOAT),
    }.items()
} | {
    "classes": Trial(
        check_arrays,
        make=arrays(),
        damage=arrays(mask=np.full((2, 4, 4), 7, np.uint8)),
        follow={
            "correct the mask": lambda trial, text: np.save(
                trial.root / "a.mask.npy", np.load(trial.root / "a.mask.npy") // 7
            )
        },
    ),
    "type": Trial(
        lambda trial: check_arrays(trial),
        make=arrays(),
        damage=arrays(np.zeros((2, 4, 4, 1), np.int64)),
        follow={
            r"one of (\w+)": lambda trial, text: np.save(
                trial.root / "a.image.npy",
                np.zeros((2, 4, 4, 1), re.search(r"one of (\w+)", text)[1]),
            )
        },
    ),
}


def delete_prepared(trial: Trial, text: str) -> None:
    shutil.rmtree(re.search(r"delete (.*), and it is prepared again", text)[1])


def load_damaged(trial: Trial) -> None:
    """Prepare, damage what was prepared once, and load again."""
    load(trial)
    if not (mark := trial.folder / "mark").exists():
        mark.touch()
        for path in (trial.folder / "data").rglob("image.npy"):
            path.write_bytes(b"damaged")
    load(trial)


def digests(root: Path) -> None:
    dataset(root)
    text = GOOD.replace(",\n", f",{'0' * 64}\n", 1)
    (root / "split.csv").write_text(text)


def visits(root: Path) -> None:
    dataset(root, tuple(f"p{n}_day{m}" for n in (1, 2, 3) for m in (1, 2)))


def add_option(trial: Trial, text: str) -> None:
    key, value = re.search(r"add '([\w.]+)=\"(.*?)\"'", text).groups()
    trial.options += f" {key}={json.dumps(value)}".replace(" ", "\\ ", 0)


def exclude_one(trial: Trial, text: str) -> None:
    name = re.search(r"/(\w)_0000\S*: the same", text)[1]
    trial.exclude = (*trial.exclude, name)
    trial.options = f"dataset.exclude=[{','.join(trial.exclude)}]"


def phantom(trial: Trial) -> None:
    raw = compose_raw(train.COMMAND, ["phantom_size=tiny", *trial.items, "dataset.root=x"])
    raw["dataset"]["root"] = str(trial.folder / "phantom")
    make_phantom(train.COMMAND.parse(raw))


def prepare(trial: Trial) -> None:
    reader = Arrays(trial.root)
    store.prepare_cases(reader, reader.cases(), trial.folder / "store")


def prepare_on_full_disk(trial: Trial) -> None:
    """Prepare on a disk that is full until something in the place is deleted."""

    def save(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        if (trial.root / "large").exists():
            patch.setattr(np, "save", save)
        prepare(trial)


def free_space(trial: Trial, text: str) -> None:
    (trial.root / "large").unlink()


def move_to_training(trial: Trial, text: str) -> None:
    for part in ("images", "labels"):
        for path in (trial.root / f"{part}Ts").iterdir():
            path.rename(trial.root / f"{part}Tr" / path.name)


def group(trial: Trial) -> None:
    names = ("p1_a", "p1_b", "p2_a")
    pattern = re.compile(trial.keywords["patient"])
    warn_of_groups(pattern.pattern, {name: pattern.fullmatch(name)[1] for name in names})


def few_labels(root: Path) -> None:
    dataset(root)
    for case in CASES[2:]:
        shutil.copy(root / "labelsTr/a.nii.gz", root / f"labelsTr/{case}.nii.gz")
        image = nib.load(root / f"labelsTr/{case}.nii.gz")
        empty = nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine)
        nib.save(empty, root / f"labelsTr/{case}.nii.gz")


def in_batches(trial: Trial) -> None:
    case = store.prepare_cases(Arrays(trial.root), Arrays(trial.root).cases(), trial.folder / "s")
    config = configure(trial, *NNUNET)
    SliceDataModule(case, case, slice_view(config), (), config.dataset.batch_size, 0, 0)


LOADED = {
    name: Trial(load, options, make=dataset, **named)
    for name, (options, named) in {
        "folds": ("dataset.split.folds=9", {}),
        "fold of folds": (
            "dataset.split.folds=3 dataset.split.fold=3",
            {
                "follow": {
                    r"use (\d)": "dataset.split.folds=3 dataset.split.fold={1}",
                    r"to (\d)": "dataset.split.folds=3 dataset.split.fold={1}",
                }
            },
        ),
        "2 folds": ("dataset.split.folds=2", {}),
        "split file": ("dataset.split.file=nope", {"further": "no cases left"}),
        "patients": (
            "dataset.split.val=0.9 dataset.split.test=0.9",
            {"follow": {"lower dataset.split": "dataset.split.val=0.2 dataset.split.test=0.2"}},
        ),
        "alike": (
            "dataset.split.seed=0",
            {
                "damage": all_alike,
                "follow": {
                    "duplicates=group": "dataset.split.duplicates=group",
                    r"labelsTr/(?=.*or (drop))|or (drop)": "dataset.split.duplicates=drop",
                    r"/(\w)_0000\S*: the same": exclude_one,
                },
            },
        ),
        "exclude": (
            "dataset.exclude=[aa]",
            {"follow": {"no case (a)a; check the names": "dataset.exclude=[{1}]"}},
        ),
        "nobody": (
            "dataset.exclude=[a,b,c,d,e,f]",
            {"follow": {"see (dataset.exclude)": "{1}=[]"}},
        ),
        "changed": (
            "dataset.split.file=ROOT/split.csv",
            {"damage": digests, "follow": {"clear its digest": clear_digest}},
        ),
    }.items()
} | {
    "visits": Trial(
        load, "dataset.split.seed=0", make=visits, follow={"look like visits": add_option}
    ),
    "pattern": Trial(
        load,
        "dataset.patient=(x)",
        make=dataset,
        follow={"correct (dataset.patient)": "{1}=(.)"},
        further="of its own, as no pattern",
    ),
    "damaged": Trial(load_damaged, make=dataset, follow={"prepared again": delete_prepared}),
    "batch": Trial(
        in_batches,
        "dataset.batch_size=9",
        make=arrays(),
        follow={r"at most (\d+)": "dataset.batch_size={1}"},
    ),
    "one picture": Trial(
        lambda trial: open_reader(configure(trial, "dataset=isic2018", "dataset.root=x")),
        "dataset.slices=3",
    ),
    "phantom": Trial(
        phantom,
        "dataset=acdc dataset.phantom=null",
        follow={"has no phantom; choose another": "dataset=uw_madison"},
    ),
    "a damaged label": Trial(
        load,
        "dataset.exclude=[]",
        make=dataset,
        damage=lambda root: (root / "labelsTr/c.nii.gz").write_bytes(b"damaged"),
        follow={r"labelsTr/(\w)\.nii\.gz: .*restore it": restore},
    ),
    "a label of a case to exclude": Trial(
        load,
        "dataset.exclude=[]",
        make=dataset,
        damage=lambda root: shutil.copy(
            root / "imagesTr/c_0000.nii.gz", root / "labelsTr/c.nii.gz"
        ),
        follow={r"labelsTr/(\w)\.nii\.gz: .*exclude the case": "dataset.exclude=[{1}]"},
    ),
    "a file missing": Trial(prepare, make=arrays(), damage=lambda r: (r / "a.mask.npy").unlink()),
    "a folder": Trial(prepare, make=arrays(), damage=folder_at("a.mask.npy")),
    "no folder": Trial(
        load,
        "paths.data=ROOT/dataset.json",
        make=dataset,
        follow={"set (paths.data)": "{1}=ROOT/../data"},
    ),
    "a full disk": Trial(
        prepare_on_full_disk,
        make=arrays(),
        damage=lambda root: (root / "large").touch(),
        follow={"permissions and space": free_space},
    ),
    "test cases of a patient": Trial(
        load,
        "dataset.patient=(.).*",
        make=lambda root: small_dataset(root, CASES, ("a2",)),
        follow={"one role": move_to_training},
        further="numTraining",
    ),
    "all of one": Trial(group, r"patient=(p)\d_\w", follow={"check the": r"patient=(p\d)_\w"}),
    "each its own": Trial(group, r"patient=(.*)", follow={"check it": r"patient=(p\d)_\w"}),
    "no class": Trial(
        load,
        "dataset.split.seed=0",
        make=few_labels,
        follow={"another (dataset.split.seed)": "{1}=1"},
        further="undefined",
    ),
}

TRIALS = SPLITS | CHECKED | LOADED
