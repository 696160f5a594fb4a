"""Trials of the messages about masks of any program that are compared with the truth."""

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from attnseg.evaluation.mask_folders import score_folders
from tests.faults.advice import Trial, remove, restore, restore_all


def masks(root: Path) -> None:
    for side in ("pred", "truth"):
        (root / side).mkdir()
        for name in ("a", "b"):
            write_mask(root / side / f"{name}.nii.gz")


def write_mask(
    path: Path, shape: tuple[int, ...] = (4, 4, 4), value: float = 1, most: float = 1
) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(np.full(shape[:2], value, np.uint8)).save(path)
        return
    array = np.zeros(shape, np.float32)
    array[1:3], array[0, 0, 0] = value, most
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def resize(trial: Trial, text: str) -> None:
    path = Path(text.split(": ")[0])
    with Image.open(path.parents[1] / "truth" / path.name) as truth, Image.open(path) as mask:
        mask.resize(truth.size, Image.Resampling.NEAREST).save(path)


def score(trial: Trial) -> None:
    options = trial.keywords
    folders = trial.root / options.pop("pred", "pred"), trial.root / "truth"
    score_folders(*folders, [], **options)


MASKS = {
    f"masks, {name}": Trial(
        score,
        options,
        make=masks,
        damage=damage,
        follow=follow,
        further="of its own" if name == "patient" else "$^",
    )
    for name, options, damage, follow in (
        ("no folder", "pred=none", None, {"give folders of masks": "pred=pred"}),
        (
            "empty",
            "pred=empty",
            lambda root: (root / "empty").mkdir(),
            {"expected files": "pred=pred"},
        ),
        (
            "no partner",
            "",
            lambda root: (root / "pred/a.nii.gz").unlink(),
            {"add or": restore_all, "remove it": remove},
        ),
        (
            "picture",
            "",
            lambda root: ((root / "pred/a.nii.gz").unlink(), write_mask(root / "pred/a.png")),
            {"convert one": restore_all},
        ),
        (
            "size",
            "",
            lambda root: [
                ((root / side / "a.nii.gz").unlink(), write_mask(root / side / "a.png", (n, n)))
                for side, n in (("pred", 4), ("truth", 8))
            ],
            {"resize it": resize},
        ),
        (
            "negative",
            "",
            lambda root: write_mask(root / "pred/a.nii.gz", value=-1),
            {"give a label map": restore},
        ),
        (
            "255",
            "",
            lambda root: write_mask(root / "truth/a.nii.gz", most=255),
            {
                "give (ignore_label=255)": "{1}",
                r"or classes=\{NAME:VALUE\}": "classes={{a:1,rest:255}}",
            },
        ),
        (
            "white",
            "",
            lambda root: [
                write_mask(root / side / f"{name}.nii.gz", value=value, most=value)
                for side, value in (("pred", 2), ("truth", 255))
                for name in ("a", "b")
            ],
            {
                "convert one": restore_all,
                r"or give classes=\{NAME:VALUE\}": "classes={{a:[2,255]}}",
            },
        ),
        ("a name twice", "classes=[a,a]", None, {"name each class once": "classes=[a]"}),
        (
            "no letters",
            r'classes={"\t":1}',
            None,
            {"give each class a name": "classes={{a:1}}"},
        ),
        ("values", "classes={a:0}", None, {"whole numbers from (1)": "classes={{a:{1}}}"}),
        (
            "many",
            f"classes={{{','.join(f'c{n}:{n}' for n in range(1, 300))}}}",
            None,
            {"can be scored": "classes={{a:1}}"},
        ),
        ("patient", r"patient=(\d)", None, {"correct the pattern": "patient=([ab])"}),
        ("labels", "classes={b:2}", None, {"the dataset's labels": "classes={{a:1,b:2}}"}),
    )
}

TRIALS = MASKS
