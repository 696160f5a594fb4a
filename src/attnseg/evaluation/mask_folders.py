"""Scores a folder of label maps, made by any program, against a folder with the truth."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attnseg.data.labels import Labels
from attnseg.data.reader import shape_text
from attnseg.data.readers.nifti import check_same_grid, read_nifti
from attnseg.data.readers.pictures import BINARY, GREY8, GREY16, SUFFIXES, read_picture
from attnseg.errors import DataError, Problems
from attnseg.evaluation.scoring import COLUMNS
from attnseg.metrics.profiles.profile import Profile
from attnseg.progress import track

VOLUMES = (".nii", ".nii.gz")
# Label maps `[S, H, W]` of truth and prediction, and the voxel size in mm; `None` for pictures.
MapPair = tuple[NDArray[Any], NDArray[Any], tuple[float, float, float] | None]


def score_folders(
    pred: Path,
    truth: Path,
    profiles: Sequence[Profile],
    classes: Sequence[str] | None = None,
    patient: str | None = None,
) -> pd.DataFrame:
    """Score a folder of label maps against a folder with the truth, file by file.

    Args:
        pred: folder of the predictions.
        truth: folder of the truth, files of the same names.
        profiles: the metric conventions.
        classes: names of the labels 1, 2, ...; `None` for the numbers.
        patient: regular expression whose group is the patient in a file's name; `None` for the
            whole name.

    Returns:
        Rows as of `score_cases`.

    Raises:
        DataError: files without a partner, on another grid, or unreadable; names them all.
    """
    pairs = pair_files(pred, truth)
    problems = Problems()
    maps: dict[str, MapPair] = {}
    for name, files in track(list(pairs.items()), "Reading", "cases"):
        with problems.gathered():
            maps[name] = read_pair(*files)
    problems.stop()
    labels = Labels(tuple(classes or _number_labels(maps)))
    rows = []
    for case, (true, predicted, spacing) in track(list(maps.items()), "Scoring", "cases"):
        masks = labels.split(true), labels.split(predicted)
        for profile in profiles:
            for score in profile.score_case(*masks, spacing, labels.names):
                rows.append(("given", patient_of(case, patient), case, *score, profile.name))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def pair_files(pred: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Return the files of truth and prediction by case.

    Raises:
        DataError: a folder is missing or empty, or a file has no partner.
    """
    true, predicted = (_list_masks(folder) for folder in (truth, pred))
    problems = Problems()
    for name in sorted(set(true) ^ set(predicted)):
        file = true.get(name) or predicted[name]
        other = pred if name in true else truth
        problems.found.append(f"{file}: no file of this name in {other}; add or remove it")
    problems.stop()
    if not true:
        raise DataError(f"{truth}: no masks; expected files ending with {', '.join(VOLUMES)}, .png")
    return {name: (true[name], predicted[name]) for name in true}


def _list_masks(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by case, which is the file's name without its ending."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give folders of masks as pred and truth")
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith(VOLUMES + SUFFIXES)]
    return {re.sub(r"(\.nii(\.gz)?|\.\w+)$", "", path.name): path for path in files}


def patient_of(name: str, pattern: str | None) -> str:
    """Return the patient of a case: the group of the pattern in its name, or else its name."""
    match = re.search(pattern, name) if pattern else None
    return match[1] if match and match.groups() else name


def read_pair(truth: Path, pred: Path) -> MapPair:
    """Read the label maps of a case.

    Raises:
        DataError: they are not label maps, or not on the same grid.
    """
    if truth.name.endswith(VOLUMES) != pred.name.endswith(VOLUMES):
        raise DataError(f"{pred}: of another kind than {truth.name}; convert one of them")
    if truth.name.endswith(VOLUMES):
        first, second = read_nifti(truth), read_nifti(pred)
        check_same_grid(first, second, (truth, pred))
        return _to_label_map(truth, first.voxels), _to_label_map(pred, second.voxels), first.spacing
    true, predicted = (read_picture(p, (*GREY8, *GREY16, *BINARY)) for p in (truth, pred))
    if true.shape != predicted.shape:
        raise DataError(
            f"{pred}: {shape_text(predicted.shape)} pixels, but {truth.name} has "
            f"{shape_text(true.shape)}; resize it to the truth's size"
        )
    return _to_label_map(truth, true)[None], _to_label_map(pred, predicted)[None], None


def _to_label_map(path: Path, labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels as uint8; a mask of 0 and 255 becomes one of 0 and 1."""
    values = np.unique(labels)
    if labels.dtype.kind == "f" or values[-1] > 255 or values[0] < 0:
        raise DataError(f"{path}: values {values[:5].tolist()} are no labels; give a label map")
    if set(values.tolist()) <= {0, 255}:
        return (labels > 0).astype(np.uint8)
    return labels.astype(np.uint8)


def _number_labels(maps: dict[str, MapPair]) -> list[str]:
    top = max(int(labels.max()) for truth, pred, _ in maps.values() for labels in (truth, pred))
    if top == 0:
        raise DataError("truth: every mask is empty; nothing to score")
    return [str(label) for label in range(1, top + 1)]
