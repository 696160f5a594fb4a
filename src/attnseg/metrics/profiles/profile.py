"""The base of metric profiles: named conventions that score cases and average the scores.

Scores are rows of class, metric and value; a value is NaN where the profile leaves it undefined.
Averaging takes a weight for each case, so that the same code computes a mean and, leaving out one
patient at a time, its confidence interval.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attnseg.metrics.bounds import VOLUMES, usual_bounds
from attnseg.metrics.intervals import count_patients, interval_of_average, leave_out_patients
from attnseg.metrics.overlap import Overlap

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]
Spacing = tuple[float, float, float] | None
Score = tuple[str, str, float]  # class, metric, value

OF_NEGATIVES = ("tn", "specificity", "accuracy")  # metrics that count true negatives


@dataclass(frozen=True)
class Metric:
    """A number that a profile reports.

    Attributes:
        name: in files.
        label: in tables; may name options of the profile in braces.
        unit: of the values, "mm" or "voxels"; empty for shares.
        up: whether larger values are better; `None` if 0 is best.
        shown: whether the terminal shows it; files hold every metric.
        of_probabilities: whether it scores probabilities (see `Calibration`) instead of masks.
        limits: lowest and highest possible value; `None` is 0 to 1 without a unit, from 0 on with
            one, and any number if `up` is `None`.
    """

    name: str
    label: str
    unit: str = ""
    up: bool | None = True
    shown: bool = True
    of_probabilities: bool = False
    limits: tuple[float, float] | None = None

    @property
    def digits(self) -> int:
        """Decimal places in tables."""
        return 2 if self.unit else 4

    @property
    def silent(self) -> float | None:
        """Score, in a pair of variants, of a class that is absent and was rightly not predicted.

        It is the perfect one: 1 of a share, 0 of a distance or an error. It counts only where the
        other variant has a value of the same class and case.
        """
        return None if self.up is None else float(self.up)

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value, infinite if there is none."""
        return self.limits or usual_bounds(self.unit, self.up)

    @property
    def quantity(self) -> str:
        """Name without the unit: `hd95` for `hd95_mm` and `hd95_voxels`."""
        return self.name.removesuffix(f"_{self.unit}") if self.unit else self.name


@dataclass(frozen=True)
class SingleMetric:
    """Base of metrics that stand by themselves, each in its file: any profile can score them, too.

    A subclass may have options, which are fields, and states its empty masks itself.
    """

    @property
    def metric(self) -> Metric:
        """Name, label, unit, direction and bounds, which may depend on the options."""
        raise NotImplementedError

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> float:
        """Score one class of one case; see `Profile.score`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Profile:
    """Base of the profiles. A subclass states its rules and scores one class of one case.

    Attributes:
        version: raised whenever the definition of a number changes.
        added: metrics that are scored besides those of the profile, by any key.
    """

    version: int = 1
    added: dict[str, SingleMetric] = field(default_factory=dict, kw_only=True)

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    rules: ClassVar[Mapping[str, str]]  # the convention, in prose

    def __post_init__(self) -> None:
        """Declare the metrics that are added."""
        if self.added:
            added = [single.metric for single in self.added.values()]
            object.__setattr__(self, "metrics", (*type(self).metrics, *added))

    @property
    def options(self) -> dict[str, Any]:
        """Options that decide the scores; metrics that are added, by their names."""
        options = asdict(self)
        if not options.pop("added"):
            return options
        singles = self.added.values()
        added = {one.metric.name: {"class": type(one).__name__, **asdict(one)} for one in singles}
        return {**options, "added": added}

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change whenever a score could change."""
        text = json.dumps([self.name, self.options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def label(self, metric: Metric) -> str:
        """Return a metric's label with its unit, the profile's options filled in."""
        label = metric.label.format(**asdict(self))
        return f"{label} ({metric.unit})" if metric.unit else label

    @property
    def title(self) -> str:
        """Name and digest."""
        return f"{self.name} ({self.digest})"

    def describe(self) -> dict[str, Any]:
        """Return name, digest, options, rules and metrics, for the files that hold numbers."""
        metrics: dict[str, dict[str, Any]] = {
            m.name: {
                "label": self.label(m),
                "unit": m.unit,
                "up": m.up,
                "digits": m.digits,
                "silent": m.silent,
            }
            for m in self.metrics
        }
        for m in self.metrics:
            if m.limits is not None:  # JSON has no infinity.
                bounds = [None if math.isinf(end) else end for end in m.limits]
                metrics[m.name]["bounds"] = bounds
        facts = {"name": self.name, "digest": self.digest, **self.options, **self.rules}
        return {**facts, "metrics": metrics}

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        """Score one class of one case, given as masks `[S, H, W]`.

        The spacing is the voxel size along S, H, W, mm; `None` if unknown. The result is the value
        by metric, NaN where undefined.
        """
        raise NotImplementedError

    def of_class(self, name: str) -> "Profile":
        """Return the profile with the options of one class."""
        return self

    def score_case(
        self, truth: Mask, prediction: Mask, spacing: Spacing, classes: Sequence[str]
    ) -> list[Score]:
        """Score a case, given as masks `[classes, S, H, W]` and the names of the classes.

        Classes are scored at the same time, in one thread per core. Masks are not cropped, because
        the score of a missed organ may depend on the size of the image.
        """

        def score_class(name: str, true: Mask, predicted: Mask) -> dict[str, float]:
            scores = self.of_class(name).score(true, predicted, spacing)
            for single in self.added.values():
                scores[single.metric.name] = single.score(true, predicted, spacing)
            voxels = (np.count_nonzero(true), np.count_nonzero(predicted))
            return {**scores, **dict(zip(VOLUMES, map(float, voxels), strict=True))}

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            cells = zip(classes, truth, prediction, strict=True)
            by_class = list(pool.map(lambda cell: score_class(*cell), cells))
        return [
            (name, metric, float(value))
            for name, scores in zip(classes, by_class, strict=True)
            for metric, value in scores.items()
        ]

    def select_scores(self, measured: Mapping[str, Values], classes: Sequence[str]) -> list[Score]:
        """Select this profile's metrics from those of `Calibration.scores`, `[classes]` each."""
        wanted = {metric.name for metric in self.metrics if metric.of_probabilities}
        return [
            (name, metric, value)
            for metric, values in measured.items()
            if metric in wanted
            for name, value in zip(classes, values.tolist(), strict=True)
        ]

    def reduce(self, raw: Mapping[str, Values], weights: Values) -> dict[str, Values]:
        """Average over cases, then over classes; undefined values are left out.

        Args:
            raw: values `[cases, classes]` by metric, NaN where undefined.
            weights: of the cases, `[B, cases]`, one row per average.

        Returns:
            By metric, `[B, classes + 1]`; the last column is over all classes.
        """
        return {
            metric.name: with_mean(weighted_mean(raw[metric.name], weights))
            for metric in self.metrics
            if metric.name in raw
        }

    def reduce_added(self, raw: Mapping[str, Values], weights: Values) -> dict[str, Values]:
        """Average the metrics that are added over cases, then over classes; see `reduce`."""
        names = [single.metric.name for single in self.added.values()]
        return {n: with_mean(weighted_mean(raw[n], weights)) for n in names if n in raw}

    def summarise(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Average scores of many cases.

        Args:
            scores: a row per case, class and metric: `patient`, `case`, `class`, `metric`, `value`.

        Returns:
            A row per class, then `mean`. Columns: each metric and, where there are three patients
            or more, `<metric>_low` and `<metric>_high`, the 95 % interval; `cases`,
            `undefined` (the first metric's cases left out), `missed` (true, but nothing predicted)
            and `spurious` (predicted, but nothing true).
        """
        raw, patients, classes = to_matrices(scores)
        table = pd.DataFrame(index=[*classes, "mean"])
        averages = self.reduce(raw, leave_out_patients(patients))
        for metric in [metric for metric in self.metrics if metric.name in averages]:
            name, columns = metric.name, averages[metric.name]
            table[name] = columns[0]
            known = ~np.isnan(raw[name]) if name in raw else np.ones_like(raw[VOLUMES[0]], bool)
            counts = [*count_patients(known, patients), len(set(patients))]
            ends = [
                interval_of_average(column, int(count), metric.bounds)
                for column, count in zip(columns.T, counts, strict=True)
            ]
            if not np.isnan(ends).all():
                table[f"{name}_low"], table[f"{name}_high"] = zip(*ends, strict=True)
        truth, predicted = (raw[name] for name in VOLUMES)
        counted = {
            "cases": (~np.isnan(truth)).sum(0),
            "undefined": self.undefined(raw).sum(0),
            "missed": ((truth > 0) & (predicted == 0)).sum(0),
            "spurious": ((truth == 0) & (predicted > 0)).sum(0),
        }
        for name, by_class in counted.items():
            total = len(patients) if name == "cases" else int(by_class.sum())
            table[name] = [*by_class.tolist(), total]
        return table

    def undefined(self, raw: Mapping[str, Values]) -> NDArray[np.bool_]:
        """Return whether the profile leaves out each case and class, `[cases, classes]`."""
        first = raw.get(self.metrics[0].name)
        return np.isnan(first) if first is not None else np.zeros_like(raw[VOLUMES[0]], bool)


def score_known_voxels(
    profile: Profile,
    truth: Mask,
    prediction: Mask,
    spacing: Spacing,
    classes: Sequence[str],
    ignored: Mask | None,
) -> list[Score]:
    """Score a case as `Profile.score_case` does, without the voxels `[S, H, W]` to be ignored.

    These are background in truth and prediction. Metrics that count true negatives do not count
    them.
    """
    if ignored is None or not ignored.any():
        return profile.score_case(truth, prediction, spacing, classes)
    truth, prediction = truth & ~ignored, prediction & ~ignored
    counts = {
        name: Overlap.of(true[~ignored], predicted[~ignored])
        for name, true, predicted in zip(classes, truth, prediction, strict=True)
    }
    return [
        (name, metric, float(getattr(counts[name], metric)))
        if metric in OF_NEGATIVES and not np.isnan(value)
        else (name, metric, value)
        for name, metric, value in profile.score_case(truth, prediction, spacing, classes)
    ]


def to_matrices(scores: pd.DataFrame) -> tuple[dict[str, Values], list[str], list[str]]:
    """Return values `[cases, classes]` by metric, the patient of each case, and the classes."""
    cases, classes = (list(dict.fromkeys(scores[name])) for name in ("case", "class"))
    patient = dict(zip(scores["case"], scores["patient"], strict=True))
    raw = {
        str(metric): rows.pivot(index="case", columns="class", values="value")
        .reindex(index=cases, columns=classes)
        .to_numpy(float)
        for metric, rows in scores.groupby("metric", sort=False)
    }
    return raw, [patient[case] for case in cases], classes


def weighted_mean(values: Values, weights: Values) -> Values:
    """Return the weighted mean over cases `[B, classes]`; undefined values are left out."""
    known = ~np.isnan(values)
    count = weights @ known
    with np.errstate(invalid="ignore"):
        return np.asarray(weights @ np.where(known, values, 0) / np.where(count, count, np.nan))


def with_mean(each: Values) -> Values:
    """Append a column with the mean of each row, leaving undefined values out."""
    known = ~np.isnan(each)
    count = known.sum(1)
    mean = np.where(known, each, 0).sum(1) / np.where(count, count, np.nan)
    return np.concatenate([each, mean[:, None]], 1)
