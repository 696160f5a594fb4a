"""The profile `strict`, our default, which gives missed and spurious organs the worst score."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from attnseg.metrics.overlap import Overlap, lesion_f1
from attnseg.metrics.profiles.profile import (
    Mask,
    Metric,
    Profile,
    Spacing,
    Values,
    weighted_mean,
)
from attnseg.metrics.surface import assd, hd, hd95, nsd, surface_distances, surface_elements


@dataclass(frozen=True)
class Strict(Profile):
    """Scores missed and spurious organs as the worst possible prediction.

    Attributes:
        nsd_tolerance_mm: distance up to which surfaces agree. The default, 3 mm, is the slice
            thickness of the UW-Madison scans, which limits how exactly a surface can be placed
            along the axis.
        nsd_tolerances_mm: by class, for classes with a tolerance of their own.
    """

    nsd_tolerance_mm: float = 3.0
    nsd_tolerances_mm: dict[str, float] = field(default_factory=dict)
    version: int = 2

    name: ClassVar = "strict"
    metrics: ClassVar = (
        Metric("dice", "Dice"),
        Metric("jaccard", "Jaccard"),
        Metric("hd95_mm", "HD95", "mm", up=False),
        Metric("nsd", "NSD ({nsd_tolerance_mm:g} mm)"),
        Metric("weighted_jaccard", "weighted Jaccard", shown=False),
        Metric("hd_mm", "HD", "mm", up=False, shown=False),
        Metric("assd_mm", "ASSD", "mm", up=False, shown=False),
        Metric("sensitivity", "sensitivity", shown=False),
        Metric("specificity", "specificity", shown=False),
        Metric("precision", "precision", shown=False),
        Metric("accuracy", "accuracy", shown=False),
        Metric("volume_error", "relative volume error", up=None, shown=False),
        Metric("lesion_f1", "lesion-wise F1", shown=False),
        Metric("ece", "ECE", up=False, shown=False, of_probabilities=True),
        Metric("brier", "Brier", up=False, shown=False, of_probabilities=True),
    )
    rules: ClassVar = {
        "unit": "case in 3D, with the voxel spacing; mean over cases, then classes",
        "missed": "overlap metrics and NSD 0, distances the image's diagonal in mm",
        "spurious": "as missed; sensitivity and volume error are undefined",
        "both_empty": "undefined, left out of every mean and counted",
        "unknown_spacing": "distances and NSD undefined",
        "hd95_mm": "larger of the two directed 95th percentiles, mm",
        "nsd": "share of the surfaces' area within the tolerance (Nikolov et al., 2021)",
        "weighted_jaccard": "mean over classes, weighted by their true voxels in all cases",
        "volume_error": "(predicted - true) / true volume; the mean keeps the sign",
    }

    def score(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        """Score one class of one case; see `Profile.score`."""
        counts = Overlap.of(truth, prediction)
        if counts.tp + counts.fp + counts.fn == 0:
            summed_up = {m.name for m in self.metrics if m.of_probabilities} | {"weighted_jaccard"}
            return {m.name: math.nan for m in self.metrics if m.name not in summed_up}
        scores = {
            "dice": counts.dice,
            "jaccard": counts.jaccard,
            "sensitivity": counts.sensitivity,
            "specificity": counts.specificity,
            "precision": counts.precision if counts.tp + counts.fp else 0.0,
            "accuracy": counts.accuracy,
            "volume_error": counts.volume_error,
            "lesion_f1": lesion_f1(truth, prediction),
        }
        return scores | self._distances(truth, prediction, spacing)

    def of_class(self, name: str) -> "Strict":
        """Return the profile with the tolerance of one class."""
        tolerance = self.nsd_tolerances_mm.get(name, self.nsd_tolerance_mm)
        return replace(self, nsd_tolerance_mm=tolerance)

    def label(self, metric: Metric) -> str:
        """Return a metric's label; see `Profile.label`."""
        own = ", ".join(f"{name} {mm:g}" for name, mm in self.nsd_tolerances_mm.items())
        plain = super().label(metric)
        return plain.replace(" mm)", f" mm, {own})") if own and metric.name == "nsd" else plain

    def _distances(self, truth: Mask, prediction: Mask, spacing: Spacing) -> dict[str, float]:
        names = ("hd_mm", "hd95_mm", "assd_mm")
        if spacing is None:
            return dict.fromkeys((*names, "nsd"), math.nan)
        if not truth.any() or not prediction.any():
            diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
            return {**dict.fromkeys(names, diagonal), "nsd": 0.0}
        found = surface_distances(truth, prediction, spacing)
        elements = surface_elements(truth, prediction, spacing)
        return {
            "hd_mm": hd(found),
            "hd95_mm": hd95(found),
            "assd_mm": assd(found),
            "nsd": nsd(elements, self.nsd_tolerance_mm),
        }

    def reduce(self, raw: Mapping[str, Values], weights: Values) -> dict[str, Values]:
        """Average; see `Profile.reduce`."""
        reduced = super().reduce(raw, weights)
        jaccard = weighted_mean(raw["jaccard"], weights)
        voxels = np.where(np.isnan(jaccard), 0, weights @ np.nan_to_num(raw["truth_voxels"]))
        total = voxels.sum(1)
        mean = (voxels * np.nan_to_num(jaccard)).sum(1) / np.where(total, total, np.nan)
        nothing = np.full_like(jaccard, np.nan)
        reduced["weighted_jaccard"] = np.concatenate([nothing, mean[:, None]], 1)
        return reduced
