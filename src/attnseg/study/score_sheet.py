"""Scores of all runs side by side, so that two variants are compared over the same cases.

A profile may leave a class undefined that is absent from both masks of a case: whether the case
counts would then depend on the prediction. In a pair, a class of a case counts as soon as one run
of either variant has a value, and the runs that rightly predicted nothing get the perfect score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from attnseg.runs.variants import Variant
from attnseg.study.metric import ComparedMetric
from attnseg.study.patient_scores import CELL, WEIGHTED, select_scores, weigh_patients


@dataclass(frozen=True)
class ScoreSheet:
    """Scores by cell (patient, case and class; rows) and run (columns, numbered)."""

    metric: ComparedMetric
    runs: dict[str, list[tuple[int, int]]]  # seed and column of each run, by variant
    values: pd.DataFrame  # NaN where the profile gives none
    truth: pd.DataFrame  # true voxels; NaN where the run has not recorded them
    predicted: pd.DataFrame  # predicted voxels, in the same form

    @classmethod
    def of(cls, variants: Sequence[Variant], split: str, metric: ComparedMetric) -> "ScoreSheet":
        """Read the scores of all runs of the variants."""
        runs: dict[str, list[tuple[int, int]]] = {}
        columns: dict[str, dict[int, pd.Series]] = {}
        for variant in variants:
            for run in sorted(variant.runs, key=lambda run: run.seed):
                number = sum(map(len, runs.values()))
                runs.setdefault(variant.name, []).append((run.seed, number))
                for name in (metric.name, "truth_voxels", "predicted_voxels"):
                    rows = select_scores(run, split, name)
                    columns.setdefault(name, {})[number] = rows.set_index(CELL)["value"]
        values = pd.DataFrame(columns[metric.name])
        voxels = [
            pd.DataFrame(columns[name]).reindex(values.index)
            for name in ("truth_voxels", "predicted_voxels")
        ]
        return cls(metric, runs, values, *voxels)

    @property
    def classes(self) -> list[str]:
        """The scored classes, in the order of the first run."""
        return list(map(str, self.values.index.unique("class")))

    def pair(
        self, variant: str, baseline: str, classes: Sequence[str] | None = None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the values of both variants by patient (rows) and seed (columns).

        Left out are patients in whom a variant has no value although the other has one: where it
        missed a class and the profile gives a miss no number.
        """
        runs = self.runs[variant] + self.runs[baseline]
        numbers = [number for _, number in runs]
        values = self.values[numbers]
        counted = values.notna().any(axis=1)
        silent = values.isna() & self._rightly_silent(numbers)
        filled = values.mask(silent.mul(counted, axis=0), self.metric.silent)
        patients = self.average(filled[counted], classes)
        own, base = (self._by_seed(patients, name) for name in (variant, baseline))
        both = own.notna().any(axis=1) & base.notna().any(axis=1)
        return own[both], base[both]

    def number_folds(self, variant: str, baseline: str) -> pd.Series | None:
        """Return the number of the fold that tested each patient; `None` if there is one division.

        Folds of a cross-validation test different patients, by different runs.
        """
        numbers = [number for name in (variant, baseline) for _, number in self.runs[name]]
        scored = (
            (self.truth[numbers].notna() | self.values[numbers].notna()).groupby("patient").any()
        )
        codes, patterns = pd.factorize(pd.Series(map(tuple, scored.to_numpy()), scored.index))
        # A run that tested patients of several patterns is no fold.
        shared = np.array([*patterns]).sum(axis=0) > 1
        return None if len(patterns) < 2 or np.any(shared) else pd.Series(codes, scored.index)

    def _by_seed(self, patients: pd.DataFrame, variant: str) -> pd.DataFrame:
        """Average a variant's runs of the same seed, which are folds."""
        columns: dict[int, list[int]] = {}
        for seed, number in self.runs[variant]:
            columns.setdefault(seed, []).append(number)
        return pd.DataFrame({seed: patients[own].mean(axis=1) for seed, own in columns.items()})

    def _rightly_silent(self, numbers: Sequence[int]) -> pd.DataFrame:
        """Return in which cells a run predicted nothing where nothing is."""
        return (self.truth[numbers] == 0) & ~(self.predicted[numbers] > 0)

    def average(self, values: pd.DataFrame, classes: Sequence[str] | None = None) -> pd.DataFrame:
        """Return values by patient and run, whose means are the profile's (see `weigh_patients`).

        A weighted metric weights the classes by their true voxels in all cases of the run.
        """
        if classes is not None:
            values = values[values.index.isin(classes, level="class")]
        weights = None
        if self.metric.name in WEIGHTED:
            weights = self.truth[values.columns].groupby(level="class").sum()
        return weigh_patients(values, weights, self.metric.cases_first)
