"""Single cases for the page: which ones are shown, their scores, and the pictures runs kept."""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from attnseg.runs.finished import Run, Variant
from attnseg.study import values
from attnseg.study.metric import Metric

NAME = re.compile(r"\d+-\d+")  # what runs call a slice's files; nothing else is opened


@dataclass(frozen=True)
class Pictures:
    """Pictures that a run kept.

    Attributes:
        folder: where they are.
        classes: foreground classes, in the order of the masks' indices or bits.
        overlapping: whether masks hold bits.
        cases: entries of `index.json` by case.
    """

    folder: Path
    classes: tuple[str, ...]
    overlapping: bool
    cases: Mapping[str, Any]


def pictures(run: Run, split: str) -> Pictures | None:
    """Return the pictures that a run kept of a split's cases; `None` if there are none."""
    folder = run.folder / "pictures"
    try:
        index = json.loads((folder / "index.json").read_text())
        if index["split"] != split:
            return None
        found = {str(entry["case"]): entry for entry in index["cases"]}
        classes = tuple(map(str, index["classes"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Pictures(folder, classes, bool(index["overlapping"]), found)


def table(variants: Sequence[Variant], split: str, metric: str) -> pd.DataFrame:
    """Return the mean over classes and runs by case (rows, with their patients) and variant."""
    columns = {}
    for variant in variants:
        found = pd.concat([values.by_case(run, split, metric) for run in variant.runs])
        columns[variant.name] = found.groupby(["case", "patient"], sort=True).mean()
    return pd.DataFrame(columns)


def spread(means: pd.DataFrame) -> pd.Series:
    """Return how far variants disagree on each case: best less worst mean; NaN if unknown."""
    return means.max(axis=1) - means.min(axis=1)


def worst(means: pd.DataFrame, metric: Metric) -> pd.Series:
    """Return each case's worst mean over variants; NaN if unknown."""
    return means.min(axis=1) if metric.up else means.max(axis=1)


def notable(means: pd.DataFrame, metric: Metric, most: int) -> list[Any]:
    """Return at most so many rows: in turn what variants disagree on most and the worst."""
    disagreeing = spread(means).sort_values(ascending=False, kind="stable").index
    worst_first = worst(means, metric).sort_values(ascending=metric.up, kind="stable").index
    in_turn = chain.from_iterable(zip_longest(disagreeing, worst_first))
    return list(dict.fromkeys(in_turn))[:most]


def describe(
    variants: Sequence[Variant], split: str, metric: Metric, most: int
) -> tuple[list[dict[str, Any]], tuple[str, ...], bool]:
    """Return what the page's script shows of cases.

    Args:
        variants: that are compared.
        split: `val` or `test`.
        metric: that is compared.
        most: cases.

    Returns:
        A mapping per case, as `notable` has them; the classes in the masks' order (of the scores,
        where no run kept pictures), and whether they overlap.
    """
    means = table(variants, split, metric.name)
    kept = {run.folder: pictures(run, split) for v in variants for run in v.runs}
    first = next((found for found in kept.values() if found is not None), None)
    if first is None:
        scored = values.select(variants[0].runs[0], split, metric.name)["class"].unique()
        classes: tuple[str, ...] = tuple(map(str, scored))
    else:
        classes = first.classes
    runs = [run for variant in variants for run in variant.runs]
    scores = {run.folder: _scores(run, split, metric.name) for run in runs}
    overall = {run.folder: values.by_case(run, split, metric.name) for run in runs}
    found = []
    for case, patient in notable(means, metric, most):
        own = means.loc[(case, patient)]
        shown = [_shown(variant, kept, case) for variant in variants]
        found.append(
            {
                "case": case,
                "patient": patient,
                "spread": _known(float(own.max() - own.min())),
                "worst": _known(float(own.min() if metric.up else own.max())),
                "scores": [
                    [
                        _known(float(own[variant.name])),
                        *_means([scores[r.folder].get(case, {}) for r in variant.runs], classes),
                    ]
                    for variant in variants
                ],
                "shown": [
                    None
                    if run is None
                    else {
                        "seed": run.seed,
                        "run": run.folder.name,
                        "score": _known(float(overall[run.folder].get((patient, case), math.nan))),
                    }
                    for run in shown
                ],
                "slices": _slices(case, [None if r is None else kept[r.folder] for r in shown]),
            }
        )
    return found, classes, first is not None and first.overlapping


def _scores(run: Run, split: str, metric: str) -> dict[str, dict[str, float]]:
    """Return a run's values by case and class."""
    found: dict[str, dict[str, float]] = {}
    rows = values.select(run, split, metric)
    for case, name, value in zip(rows["case"], rows["class"], rows["value"], strict=True):
        found.setdefault(case, {})[name] = value
    return found


def _means(runs: Sequence[Mapping[str, float]], classes: Sequence[str]) -> list[float | None]:
    """Return the mean of each class over runs."""
    return [_mean([run[name] for run in runs if name in run]) for name in classes]


def _mean(found: Sequence[float]) -> float | None:
    known = [value for value in found if not math.isnan(value)]
    return _known(sum(known) / len(known)) if known else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _shown(variant: Variant, kept: Mapping[Path, Pictures | None], case: str) -> Run | None:
    """Return the run whose prediction is pictured: the lowest seed that has the case."""
    for run in sorted(variant.runs, key=lambda run: run.seed):
        pictured = kept[run.folder]
        if pictured is not None and case in pictured.cases:
            return run
    return None


def _slices(case: str, shown: Sequence[Pictures | None]) -> list[dict[str, Any]]:
    """Return a case's slices: image, truth, and each variant's mask, `None` where it is missing."""
    first = next((pictured for pictured in shown if pictured is not None), None)
    if first is None:
        return []
    found = []
    for entry in first.cases[case]["slices"]:
        name = str(entry["name"])
        image, truth = first.folder / f"{name}-image.jpg", _mask(first.folder, name, "truth")
        if truth is None or not image.is_file():
            continue
        masks = []
        for pictured in shown:
            mask = None if pictured is None else _prediction(pictured, case, entry["slice"])
            masks.append(None if mask is None or mask.shape != truth.shape else packed(mask))
        found.append(
            {
                "slice": int(entry["slice"]),
                "of": int(first.cases[case]["of"]),
                "width": truth.shape[1],
                "height": truth.shape[0],
                "image": base64.b64encode(image.read_bytes()).decode(),
                "truth": packed(truth),
                "masks": masks,
            }
        )
    return found


def _prediction(pictured: Pictures, case: str, number: int) -> NDArray[np.uint8] | None:
    entries = pictured.cases[case]["slices"]
    name = next((str(e["name"]) for e in entries if e["slice"] == number), "")
    return _mask(pictured.folder, name, "prediction")


def _mask(folder: Path, name: str, what: str) -> NDArray[np.uint8] | None:
    if not NAME.fullmatch(name):
        return None
    try:
        with Image.open(folder / f"{name}-{what}.png") as image:
            return np.asarray(image.convert("L"))
    except (OSError, ValueError):
        return None


def packed(mask: NDArray[np.uint8]) -> str:
    """Return a mask's run lengths, as pairs of bytes (value, length up to 255) in base 64.

    A page can colour these without reading pixels back, which some browsers refuse or blur.
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    parts = -(-lengths // 255)
    pairs = np.full((int(parts.sum()), 2), 255, np.uint8)
    pairs[:, 0] = np.repeat(flat[starts], parts)
    pairs[np.cumsum(parts) - 1, 1] = lengths - 255 * (parts - 1)
    return base64.b64encode(pairs.tobytes()).decode()
