"""Scores a folder of label maps, made by any program, against a folder with the truth."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from attnseg.data.closed_test import record_scored_masks
from attnseg.data.folders import (
    compile_patient_pattern,
    find_ending,
    list_by_name,
    warn_of_groups,
)
from attnseg.data.labels import (
    MAX_EXCLUSIVE,
    MAX_OVERLAPPING,
    Labels,
    digest_masks,
    number_values,
)
from attnseg.data.parallel import work_on_files
from attnseg.data.reader import shape_text
from attnseg.data.readers.nifti import ENDINGS as VOLUMES
from attnseg.data.readers.nifti import check_same_grid, find_labels, map_labels, read_nifti
from attnseg.data.readers.pictures import SUFFIXES, read_label_picture
from attnseg.errors import ConfigError, DataError, Problems, join_names
from attnseg.evaluation.scoring import COLUMNS
from attnseg.metrics.profiles.profile import Profile, score_known_voxels

log = logging.getLogger(__name__)

WHITE = 255
Classes = list[str] | dict[str, int | list[int]] | None
# Label maps `[S, H, W]` of truth and prediction, and the voxel size in mm; `None` for pictures.
MapPair = tuple[NDArray[Any], NDArray[Any], tuple[float, float, float] | None]


def score_folders(
    pred: Path,
    truth: Path,
    profiles: Sequence[Profile],
    classes: Classes = None,
    patient: str | None = None,
    ignore_label: int | None = None,
    data: Path | None = None,
) -> pd.DataFrame:
    """Score a folder of label maps against a folder with the truth, file by file.

    Args:
        pred: folder of the predictions.
        truth: folder of the truth, files of the same names.
        profiles: the metric conventions.
        classes: names of the labels 1, 2, ..., or a label or several by name; `None` for the
            labels that occur.
        patient: regular expression whose group is the patient in a file's name; `None` for the
            whole name.
        ignore_label: value of the voxels in the truth that are not scored.
        data: folder of `paths.data`, where an opening is recorded if masks of a closed test set are
            among the truth.

    Returns:
        Rows as of `score_cases`.

    Raises:
        ConfigError: the pattern is no regular expression with one group, or a class has no label.
        DataError: files without a partner, on another grid, or unreadable, names without a
            patient, or labels without a name; names them all.
    """
    pairs = pair_files(pred, truth)
    patients = find_patients(pairs, patient)
    problems = Problems()
    found = work_on_files(list_labels, list(pairs.values()), "Reading", "cases", pred, problems)
    problems.stop()
    both = dict(zip(pairs.values(), filter(None, found), strict=True))
    labels, meanings = define_labels(both, classes, ignore_label)

    def score_case(case: str) -> tuple[list[tuple[Any, ...]], set[str]]:
        scores, digests = score_pair(pairs[case], profiles, labels, meanings)
        return [("given", patients[case], case, *score) for score in scores], digests

    scored = work_on_files(score_case, list(pairs), "Scoring", "cases", pred, problems)
    problems.stop()
    rows, digests = zip(*filter(None, scored), strict=True)
    if data is not None:
        _record_opening(data, set().union(*digests), pred, truth)
    return pd.DataFrame(list(chain(*rows)), columns=list(COLUMNS))


def list_labels(files: tuple[Path, Path]) -> tuple[set[int], set[int]]:
    """Return the labels of truth and prediction, once both are read and lie on the same grid.

    Raises:
        DataError: they are not label maps, not on the same grid, or hold other than whole numbers
            from 0.
    """
    problems = Problems()
    found: list[set[int]] = []
    for path, label_map in zip(files, read_pair(*files)[:2], strict=True):
        with problems.gathered():
            values = find_labels(path, label_map)
            if values[0] < 0:
                raise DataError(f"{path}: {values[0]:.0f} is no label; give a label map")
            found.append(set(map(int, values.tolist())))
    problems.stop()
    return found[0], found[1]


def score_pair(
    files: tuple[Path, Path],
    profiles: Sequence[Profile],
    labels: Labels,
    meanings: Sequence[Mapping[int, int]],
) -> tuple[list[tuple[Any, ...]], set[str]]:
    """Score a prediction against the truth; arguments as returned by `define_labels`.

    Returns:
        Class, metric, value and profile of each score, and the digests of the true masks.

    Raises:
        DataError: a label has no meaning.
    """
    *maps, spacing = read_pair(*files)
    problems, mapped = Problems(), []
    for path, label_map, meaning in zip(files, maps, meanings, strict=True):
        with problems.gathered():
            mapped.append(map_labels(path, label_map, meaning))
    problems.stop()
    true, predicted = mapped
    masks, ignored = (labels.split(true), labels.split(predicted)), labels.find_ignored(true)
    scores = [
        (*score, profile.name)
        for profile in profiles
        for score in score_known_voxels(profile, *masks, spacing, labels.names, ignored)
    ]
    return scores, set(digest_masks(masks[0]))


def _record_opening(data: Path, digests: set[str], pred: Path, truth: Path) -> None:
    """Record an opening if any true mask, by its digest, is one of a closed test set."""
    run, purpose = str(pred.resolve()), f"evaluate pred={pred} truth={truth}"
    if count := record_scored_masks(data, digests, run, purpose):
        log.warning("%d of the true masks are of a closed test set: its opening is recorded", count)


def define_labels(
    found: Mapping[tuple[Path, Path], tuple[set[int], set[int]]],
    classes: Classes,
    ignore_label: int | None,
) -> tuple[Labels, list[dict[int, int]]]:
    """Return the classes, and the value in their label map of each label of truth and prediction.

    `found` has the labels that occur by files, see `list_labels`. A folder of masks that hold
    nothing but 0 and 255 has one class, 255. Elsewhere 255 has the meaning that `classes` or
    `ignore_label` gives it, or is refused.

    Raises:
        ConfigError: a class has no label of its own.
        DataError: too many labels, or a 255 that has no meaning.
    """
    occurring = [{files[n]: labels[n] for files, labels in found.items()} for n in (0, 1)]
    binary = [
        ignore_label != WHITE
        and (classes is None or (isinstance(classes, list) and len(classes) == 1))
        and {WHITE} <= set().union(*values.values()) <= {0, WHITE}
        for values in occurring
    ]
    if classes is None:
        regions = _number_labels(occurring, binary, ignore_label)
    else:
        regions = _name_labels(classes, ignore_label)
    shared = [value for values in regions.values() for value in values]
    overlapping = len(set(shared)) < len(shared)
    most = (MAX_OVERLAPPING if overlapping else MAX_EXCLUSIVE) - (ignore_label is not None)
    if len(regions) > most:
        raise DataError(f"truth: {len(regions)} classes; at most {most} can be scored")
    labels = Labels(tuple(regions), overlapping, ignore_label is not None)
    meanings = [
        {0: 0, WHITE: 1} if binary[side] else number_values(regions, overlapping, ignored)
        for side, ignored in enumerate((ignore_label, None))
    ]
    return labels, meanings


def _name_labels(
    classes: list[str] | dict[str, int | list[int]], ignore_label: int | None
) -> dict[str, tuple[int, ...]]:
    """Return the labels of each class that was named."""
    if isinstance(classes, list):
        if not classes or len(set(classes)) < len(classes):
            raise ConfigError(f"classes: {classes} has no name, or one twice; name each class once")
        classes = {name: number for number, name in enumerate(classes, 1)}
    regions = {n: (v,) if isinstance(v, int) else tuple(v) for n, v in classes.items()}
    for name, values in regions.items():
        if not (name.strip() and name.isprintable()):
            raise ConfigError(f"classes: {name!r} cannot be printed; give each class a name")
        if not values or min(values) < 1 or ignore_label in values:
            raise ConfigError(
                f"classes: {name!r} has the labels {list(values)}; give whole numbers from 1 that "
                "are not ignore_label"
            )
    return regions


def _number_labels(
    occurring: Sequence[Mapping[Path, set[int]]], binary: Sequence[bool], ignore_label: int | None
) -> dict[str, tuple[int, ...]]:
    """Return the labels that occur, named by their numbers."""
    found: set[int] = set()
    known = {0, 1, WHITE, ignore_label} if any(binary) else None
    for values, white in zip(occurring, binary, strict=True):
        for path, labels in values.items():
            if known is not None and (others := labels - known):
                raise DataError(
                    f"{path}: label {min(others)}, but the other folder's masks are 0 and 255; "
                    "convert one of them, or give classes={NAME:VALUE}"
                )
            if WHITE in labels and not white and ignore_label != WHITE:
                raise DataError(
                    f"{path}: 255 in a folder of other labels, which may be a class or voxels "
                    "without a label; give ignore_label=255, or classes={NAME:VALUE}"
                )
            found |= {1} if white and WHITE in labels else labels
    found -= {0, ignore_label}
    if not found:
        raise DataError("truth: every mask is empty; nothing to score")
    return {str(label): (label,) for label in sorted(found)}


def pair_files(pred: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Return the files of truth and prediction by case.

    Raises:
        DataError: a folder is missing or empty, a case has two files in one folder, or a file has
            no partner; names them all.
    """
    if pred.resolve() == truth.resolve():
        log.warning("%s: predictions and truth are one folder, so every score is perfect", pred)
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
        return first.voxels, second.voxels, first.spacing
    true, predicted = (read_label_picture(path)[0] for path in (truth, pred))
    if true.shape != predicted.shape:
        raise DataError(
            f"{pred}: {shape_text(predicted.shape)} pixels, but {truth.name} has "
            f"{shape_text(true.shape)}; resize it to the truth's size"
        )
    return true[None], predicted[None], None
