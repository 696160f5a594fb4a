"""Trials of the messages of `data` and `preparation`: datasets on the disk, split files, the store.

Most damage is that of the readers' own tests.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from attnseg.data.reader import check_case
from attnseg.data.readers.acdc import ACDC
from attnseg.data.readers.isic2018 import ISIC2018
from attnseg.data.readers.nifti import read_nifti
from attnseg.data.readers.nnunet import NNUNet
from attnseg.data.readers.synapse import Synapse
from attnseg.data.readers.uw_madison import UWMadison
from tests.data import (
    test_acdc,
    test_doors,
    test_isic2018,
    test_nifti,
    test_nnunet,
    test_synapse,
    test_uw_madison,
)
from tests.data.test_nnunet import LABELS, PICTURE, SCAN, Dataset
from tests.data.uw_tree import Tree
from tests.faults import test_images, test_masks
from tests.faults.advice import Trial, place_of, remove_case, restore

Edit = Callable[[Any], Any]


def read_all(reader: type) -> Callable[[Trial], None]:
    """Return an attempt that reads the cases of a dataset, without those that are excluded."""

    def attempt(trial: Trial) -> None:
        opened = reader(trial.place or trial.root, **trial.keywords)
        for ref in opened.cases():
            names = (*map(str, ref.files), ref.case)
            if not any(
                re.search(rf"(?<![\w-]){re.escape(name)}(?![^\W_])", text)
                for name in names
                for text in trial.exclude
            ):
                check_case(opened.read(ref), ref, opened)

    return attempt


def from_table(
    prefix: str, attempt: Any, make: Edit, table: Mapping[str, tuple[Any, ...]], **named: Any
) -> dict[str, Trial]:
    """Return a trial for each entry of a table of faults: (how to damage a folder, ...)."""
    return {
        f"{prefix}, {fault}": Trial(attempt, make=make, damage=edit, follow=OWN, **named)
        for fault, (edit, *_) in table.items()
    }


def nnunet(**described: Any) -> Edit:
    """Return what writes a dataset of two cases."""

    def make(root: Path, edit: Edit = lambda data: None) -> None:
        data = Dataset(root, **described)
        if data.ending.startswith(".nii"):
            channels = [SCAN] * len(data.content["channel_names"])
            data.case("a", channels).case("b0", channels)
        else:
            data.case("a", (PICTURE,), LABELS[0]).case("b0", (PICTURE + 1,), LABELS[0])
        edit(data)
        data.root.mkdir(exist_ok=True)
        (root / "dataset.json").write_text(json.dumps(data.content))

    return make


def edited(make: Any, edit: Edit) -> Edit:
    """Return what writes a dataset anew, edited before its description is written."""

    def damage(root: Path) -> None:
        shutil.rmtree(root)
        make(root, edit)

    return damage


def task(root: Path, edit: Edit = lambda data: None) -> None:
    data = test_doors.Task(root)
    edit(data)
    (root / "dataset.json").write_text(json.dumps(data.content))


def tree(root: Path, edit: Edit = lambda tree: None) -> None:
    made = Tree(root, ("case2_day1", "case3_day1"))
    made.after = lambda: None
    edit(made)
    made.write()
    made.after()


def nifti(root: Path) -> None:
    test_nifti.write(root / "scan ü.nii.gz")


def in_two(make: Any, table: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    return {fault: (edited(make, edit),) for fault, (edit, *_) in table.items()}


SCANS, CT = nnunet(channels=("T1", "T2")), nnunet()


def drop_line(trial: Trial, text: str) -> None:
    """Remove the line of a table that the message names by its number, or by a cell."""
    table = place_of(trial, text)
    lines = table.read_text().splitlines(keepends=True)
    if number := re.search(r"(?:line|row) (\d+)", text):
        lines[int(number[1]) - 1] = "\n"
    else:
        (cell,) = re.findall(r"'([^']+)'|: (\S+) appears", text)
        at = max(n for n, line in enumerate(lines) if "".join(cell) in line)
        lines[at] = "\n"
    table.write_text("".join(lines))


def drop_listed(trial: Trial, text: str) -> None:
    """Remove the case that lists the file which the message names from dataset.json."""
    name = place_of(trial, text).name
    table = trial.root / "dataset.json"
    content = json.loads(table.read_text())
    if "dataset" in content:
        content["dataset"] = {}
    elif "training" not in content:
        remove_case(trial, text)
    else:
        content["training"] = [e for e in content["training"] if name not in json.dumps(e)]
    table.write_text(json.dumps(content))


def copy_into(trial: Trial, text: str) -> None:
    """Copy a file from outside into the folder, in the place of a link or to its top."""
    outside = Path(re.search(r"\((/[^)]*)\)", text)[1])
    place = place_of(trial, text)
    if place.is_symlink():
        place.unlink()
        shutil.copy(outside, place)
        return
    shutil.copy(outside, trial.root)
    table = trial.root / "dataset.json"
    table.write_text(table.read_text().replace(f"../{outside.name}", outside.name))


def drop_slice(trial: Trial, text: str) -> None:
    """Remove the image of the slice that the message names by its id or number."""
    number = int(re.search(r"_slice_(\d+)|: slice (\d+) twice", text)[1] or 0)
    number = number or int(re.search(r"slice (\d+) twice", text)[1])
    scan = re.search(r"case\d+_day\d+", text)[0]
    paths = trial.root.rglob(f"{scan}/scans/*.png")
    same = sorted(path for path in paths if int(path.name.split("_")[1]) == number)
    for path in same[-1:]:  # It may be gone by the advice of another problem.
        path.unlink()


def convert_picture(trial: Trial, text: str) -> None:
    """Save a picture in the kind of pixels that the message names, or its first page."""
    path = place_of(trial, text)
    kind = re.search(r", not (colour|8-bit grey|16-bit grey)", text)
    with Image.open(path) as image:
        image.seek(0)
        modes = {"colour": "RGB", "8-bit grey": "L", "16-bit grey": "I;16"}
        mode = modes[kind[1]] if kind else image.mode
        image.convert("L" if mode == "I;16" else mode).convert(mode).save(path)


def move_download(trial: Trial, text: str) -> None:
    (trial.root / "img").rename(trial.folder / "img")


def restore_dataset(trial: Trial, text: str) -> None:
    """Correct the description of the dataset."""
    shutil.copy(trial.pristine / "dataset.json", trial.root)


OWN = {
    r"dataset\.json.*(convert the files|it alone, is 0|are supported)": restore,
    r"unknown labels": restore,
    r"keep one row|remove the row": drop_line,
    r"remove their rows": drop_line,
    r"copy it into the folder": copy_into,
    r"restore it or remove the case": drop_listed,
    r"remove the image|twice; keep one file": drop_slice,
    r"keep each in": move_download,
    r"convert it or restore|pictures in one file": convert_picture,
    r"or the dataset's channels": restore_dataset,
    r"resample it": restore,
}
FAULTS = {
    fault: edit
    for fault, edit in test_nnunet.SCAN_FAULTS.items()
    if fault not in ("no images for testing", "in training and test")
}
ACDC_FAULTS = {k: v for k, v in test_acdc.FAULTS.items() if k != "another folder"}
SINGLE = partial(test_acdc.download, patients=("training/patient001",))
READERS = {
    **from_table("description", read_all(NNUNet), CT, in_two(CT, test_nnunet.DESCRIPTION_FAULTS)),
    **from_table("scan", read_all(NNUNet), SCANS, in_two(SCANS, FAULTS)),
    **from_table("task", read_all(NNUNet), task, in_two(task, test_doors.TASK_FAULTS)),
    **from_table("UW", read_all(UWMadison), tree, in_two(tree, test_uw_madison.FAULTS)),
    **from_table(
        "NIfTI",
        lambda t: None if t.exclude else read_nifti(t.root / "scan ü.nii.gz"),
        nifti,
        {
            name: (lambda root, edit=edit: edit(root / "scan ü.nii.gz"),)
            for name, (edit, _) in test_nifti.FAULTS.items()
            if name != "missing"
        },
    ),
    **from_table("raw", read_all(Synapse), test_synapse.raw, test_synapse.RAW_FAULTS),
    **from_table("package", read_all(Synapse), test_synapse.package, test_synapse.PACKAGE_FAULTS),
    **from_table("ISIC", read_all(ISIC2018), test_isic2018.download, test_isic2018.FAULTS),
    **from_table("ISIC", read_all(ISIC2018), test_isic2018.download, test_masks.MASK_FAULTS),
    **from_table("ISIC", read_all(ISIC2018), test_isic2018.download, test_images.PHOTO_FAULTS),
    **from_table("ACDC", read_all(ACDC), SINGLE, ACDC_FAULTS),
}


def change(name: str, content: bytes | str | None = b"damaged") -> Edit:
    """Return what writes other bytes into a file, removes it (`None`) or its folder."""

    def damage(root: Path) -> None:
        path = root / name
        if content is None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def folder_at(name: str) -> Edit:
    """Return what puts a folder in the place of a file."""

    def damage(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return damage


def copy(old: str, new: str) -> Edit:
    return lambda root: shutil.copy(root / old, root / new)


TRIALS = READERS
