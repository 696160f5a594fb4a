"""Scores a folder of label maps, made by any program, against a folder with the truth."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attnseg.data.folders import (
    compile_patient_pattern,
    find_ending,
    list_by_name,
    warn_of_groups,
)
from attnseg.data.labels import Labels
from attnseg.data.reader import shape_text
from attnseg.data.readers.nifti import check_same_grid, read_nifti
from attnseg.data.readers.pictures import SUFFIXES, read_label_picture
from attnseg.errors import ConfigError, DataError, Problems, join_names
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
        ConfigError: the pattern is no regular expression with one group.
        DataError: files without a partner, on another grid, or unreadable, or names without a
            patient; names them all.
    """
    pairs = pair_files(pred, truth)
    patients = find_patients(pairs, patient)
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
                rows.append(("given", patients[case], case, *score, profile.name))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def pair_files(pred: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Return the files of truth and prediction by case.

    Raises:
        DataError: a folder is missing or empty, a case has two files in one folder, or a file has
            no partner; names them all.
    """
    problems = Problems()
    true, predicted = (_list_masks(folder, problems) for folder in (truth, pred))
    for folder, files, partners in ((truth, true, predicted), (pred, predicted, true)):
        if alone := [path.name for name, path in files.items() if name not in partners]:
            first, *others = alone
            more = f", nor of {join_names(others, 20)}" if others else ""
            problems.found.append(
                f"{folder / first}: no file of this name in {pred if folder is truth else truth}"
                f"{more}; add or remove {'them' if others else 'it'}"
            )
    problems.stop()
    return {name: (true[name], predicted[name]) for name in true}


def _list_masks(folder: Path, problems: Problems) -> dict[str, Path]:
    """Return the files of a folder by case, which is the file's name without its ending."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give folders of masks as pred and truth")
    endings = (*VOLUMES, *SUFFIXES)
    if files := list_by_name(folder, endings, problems):
        return files
    raise DataError(f"{folder}: no masks; expected files ending with {', '.join(VOLUMES)}, .png")


def find_patients(cases: Iterable[str], pattern: str | None) -> dict[str, str]:
    """Return the patient of each case: the group of the pattern in its name, or else its name.

    Raises:
        ConfigError: the pattern is no regular expression with one group.
        DataError: it does not match some cases, or its group is empty there.
    """
    if pattern is None:
        return {case: case for case in cases}
    try:
        compiled = compile_patient_pattern(pattern)
    except ValueError as error:
        raise ConfigError(f"patient: {error}") from error
    matches = {case: compiled.search(case) for case in cases}
    patients = {case: match[1] for case, match in matches.items() if match and match[1]}
    if without := [case for case in matches if case not in patients]:
        raise DataError(
            f"patient: {pattern!r} finds no patient in {len(without)} of {len(matches)} names: "
            f"{join_names(without)}; correct the pattern"
        )
    warn_of_groups(pattern, patients)
    return patients


def read_pair(truth: Path, pred: Path) -> MapPair:
    """Read the label maps of a case.

    Raises:
        DataError: they are not label maps, or not on the same grid.
    """
    volumes = [bool(find_ending(path.name, VOLUMES)) for path in (truth, pred)]
    if volumes[0] != volumes[1]:
        raise DataError(f"{pred}: of another kind than {truth.name}; convert one of them")
    if volumes[0]:
        first, second = read_nifti(truth), read_nifti(pred)
        check_same_grid(first, second, (truth, pred))
        return _to_label_map(truth, first.voxels), _to_label_map(pred, second.voxels), first.spacing
    true, predicted = (read_label_picture(path)[0] for path in (truth, pred))
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
