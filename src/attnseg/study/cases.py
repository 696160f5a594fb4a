"""Single cases for the page's case browser: their selection, scores and pictures."""

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

from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant
from attnseg.study import patient_scores
from attnseg.study.metric import ComparedMetric

# Runs name a slice's files by two numbers; no other file is opened, whatever the index says.
PICTURE_NAME = re.compile(r"\d+-\d+")


@dataclass(frozen=True)
class KeptPictures:
    """Pictures kept by a run."""

    folder: Path
    classes: tuple[str, ...]  # foreground classes, in the order of the masks' indices or bits
    overlapping: bool  # whether a mask's pixel holds one bit per class instead of a class index
    cases: Mapping[str, Any]  # entries of `index.json` by case


@dataclass(frozen=True)
class CaseBrowser:
    """Contents of the case browser."""

    cases: list[dict[str, Any]]  # JSON-ready, in the order of `select_telling_cases`
    classes: tuple[str, ...]  # in the masks' order, or in the scores' if no run kept pictures
    overlapping: bool  # whether classes overlap in the masks
    scored: int  # number of scored cases, shown or not


def load_pictures(run: RunFolder, split: str) -> KeptPictures | None:
    """Return the pictures that a run kept of a split's cases; `None` if there are none."""
    folder = run.pictures
    try:
        index = json.loads((folder / "index.json").read_text())
        if index["split"] != split:
            return None
        cases = {str(entry["case"]): entry for entry in index["cases"]}
        classes = tuple(map(str, index["classes"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return KeptPictures(folder, classes, bool(index["overlapping"]), cases)


def tabulate_cases(variants: Sequence[Variant], split: str, metric: str) -> pd.DataFrame:
    """Return means over classes and runs by case and patient (rows) and variant (columns)."""
    columns = {}
    for variant in variants:
        values = [patient_scores.average_cases(run, split, metric) for run in variant.runs]
        columns[variant.name] = pd.concat(values).groupby(["case", "patient"], sort=True).mean()
    return pd.DataFrame(columns)


def select_telling_cases(means: pd.DataFrame, metric: ComparedMetric, count: int) -> list[Any]:
    """Return up to `count` row labels, alternating between high disagreement and low scores.

    Disagreement is the best less the worst variant's mean; a case's score is its worst mean.
    """
    disagreement = means.max(axis=1) - means.min(axis=1)
    worst = means.min(axis=1) if metric.up else means.max(axis=1)
    disagreeing = disagreement.sort_values(ascending=False, kind="stable").index
    worst_first = worst.sort_values(ascending=metric.up, kind="stable").index
    alternating = chain.from_iterable(zip_longest(disagreeing, worst_first))
    return list(dict.fromkeys(alternating))[:count]


def build_case_browser(
    variants: Sequence[Variant], split: str, metric: ComparedMetric, count: int
) -> CaseBrowser:
    """Gather scores and pictures of the most telling cases, at most `count` of them."""
    means = tabulate_cases(variants, split, metric.name)
    runs = [run for variant in variants for run in variant.runs]
    kept = {run.path: pictures for run in runs if (pictures := load_pictures(run, split))}
    first = next(iter(kept.values()), None)
    scored = patient_scores.select_scores(runs[0], split, metric.name)["class"].unique()
    classes = first.classes if first else tuple(map(str, scored))
    by_class = {run.path: _scores_by_class(run, split, metric.name) for run in runs}
    by_case = {run.path: patient_scores.average_cases(run, split, metric.name) for run in runs}
    cases = []
    for case, patient in select_telling_cases(means, metric, count):
        own = means.loc[(case, patient)]
        pictured = [_pictured_run(variant, kept, case) for variant in variants]
        cases.append(
            {
                "case": case,
                "patient": patient,
                "spread": _rounded(float(own.max() - own.min())),
                "worst": _rounded(float(own.min() if metric.up else own.max())),
                "scores": [
                    [
                        _rounded(float(own[variant.name])),
                        *(
                            _defined_mean(
                                [by_class[r.path].get((case, name), math.nan) for r in variant.runs]
                            )
                            for name in classes
                        ),
                    ]
                    for variant in variants
                ],
                "shown": [_describe_pictured(run, by_case, (patient, case)) for run in pictured],
                "slices": _load_slices(case, [kept[run.path] if run else None for run in pictured]),
            }
        )
    return CaseBrowser(cases, classes, first is not None and first.overlapping, len(means))


def _describe_pictured(
    run: RunFolder | None, by_case: Mapping[Path, pd.Series], row: tuple[str, str]
) -> dict[str, Any] | None:
    """Return seed, folder and score of the run whose prediction is shown, if there is one."""
    if run is None:
        return None
    score = float(by_case[run.path].get(row, math.nan))
    return {"seed": run.seed, "run": run.name, "score": _rounded(score)}


def _scores_by_class(run: RunFolder, split: str, metric: str) -> dict[tuple[str, str], float]:
    """Return a run's values by case and class."""
    rows = patient_scores.select_scores(run, split, metric)
    keys = zip(rows["case"], rows["class"], strict=True)
    return dict(zip(keys, rows["value"], strict=True))


def _defined_mean(values: Sequence[float]) -> float | None:
    defined = [value for value in values if not math.isnan(value)]
    return _rounded(sum(defined) / len(defined)) if defined else None


def _rounded(value: float) -> float | None:
    """Return a value for JSON, which has no NaN."""
    return None if math.isnan(value) else round(value, 6)


def _pictured_run(
    variant: Variant, kept: Mapping[Path, KeptPictures], case: str
) -> RunFolder | None:
    """Return the run whose prediction is shown: the lowest seed with pictures of the case."""
    runs = [run for run in variant.runs if run.path in kept and case in kept[run.path].cases]
    return min(runs, key=lambda run: run.seed, default=None)


def _load_slices(case: str, variants: Sequence[KeptPictures | None]) -> list[dict[str, Any]]:
    """Return a case's slices: image, true mask, and each variant's mask or `None` if missing."""
    first = next(filter(None, variants), None)
    if first is None:
        return []
    slices = []
    for entry in first.cases[case]["slices"]:
        name = str(entry["name"])
        image, truth = first.folder / f"{name}-image.jpg", _read_mask(first.folder, name, "truth")
        if truth is None or not image.is_file():
            continue
        masks = []
        for pictures in variants:
            mask = None if pictures is None else _read_prediction(pictures, case, entry["slice"])
            same_shape = mask is not None and mask.shape == truth.shape
            masks.append(encode_mask(mask) if mask is not None and same_shape else None)
        slices.append(
            {
                "slice": int(entry["slice"]),
                "of": int(first.cases[case]["of"]),
                "width": truth.shape[1],
                "height": truth.shape[0],
                "image": base64.b64encode(image.read_bytes()).decode(),
                "truth": encode_mask(truth),
                "masks": masks,
            }
        )
    return slices


def _read_prediction(pictures: KeptPictures, case: str, number: int) -> NDArray[np.uint8] | None:
    entries = pictures.cases[case]["slices"]
    name = next((str(e["name"]) for e in entries if e["slice"] == number), "")
    return _read_mask(pictures.folder, name, "prediction")


def _read_mask(folder: Path, name: str, kind: str) -> NDArray[np.uint8] | None:
    if not PICTURE_NAME.fullmatch(name):
        return None
    try:
        with Image.open(folder / f"{name}-{kind}.png") as image:
            return np.asarray(image.convert("L"))
    except (OSError, ValueError):
        return None


def encode_mask(mask: NDArray[np.uint8]) -> str:
    """Return a mask's run lengths, as pairs of bytes (value, length up to 255) in base 64.

    Unlike a picture, the page can colour run lengths without reading pixels back from a canvas,
    which some browsers refuse or blur.
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    pieces = -(-lengths // 255)
    pairs = np.full((int(pieces.sum()), 2), 255, np.uint8)
    pairs[:, 0] = np.repeat(flat[starts], pieces)
    pairs[np.cumsum(pieces) - 1, 1] = lengths - 255 * (pieces - 1)
    return base64.b64encode(pairs.tobytes()).decode()
