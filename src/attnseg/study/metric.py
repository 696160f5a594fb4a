"""The compared metric: its label, unit, digits and direction, as stated by the runs' profile."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnseg.errors import ConfigError
from attnseg.metrics.bounds import usual_bounds
from attnseg.runs.run_folder import RunFolder
from attnseg.study.patient_scores import WEIGHTED, averages_cases_first

# Facts about the metrics of version 0.1.0, whose metrics.json does not state them.
LOWER_IS_BETTER = {"hd95_mm", "hd95_voxels", "hd_mm", "assd_mm", "hausdorff", "ece", "brier"}
BEST_AT_ZERO = {"volume_error"}
LABELS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "weighted_jaccard": "weighted Jaccard",
    "nsd": "NSD",
    "hausdorff": "Hausdorff (share)",
}
LENGTHS = ("mm", "voxels")


@dataclass(frozen=True)
class ComparedMetric:
    """A number per case and class."""

    name: str  # in files
    label: str  # in tables, with its unit
    up: bool  # whether higher is better
    unit: str  # in which differences are stated, such as `mm`; the label if it has no other
    digits: int = 4  # decimal places in tables
    silent: float = 1.0  # in a pair, of a class that is absent and not predicted
    cases_first: bool = False  # whether the profile averages classes before cases
    worst: float | None = 0.0  # value of a failed patient; `None` if there is no largest one

    @property
    def has_unit(self) -> bool:
        """Whether it is no share or other pure number."""
        return self.unit != self.label

    def text(self, value: float) -> str:
        """Return a number as tables show it."""
        return "-" if value != value else f"{value:.{self.digits}f}"

    def interval_text(self, low: float, high: float) -> str:
        """Return an interval as tables show it."""
        return "-" if low != low else f"{self.text(low)} to {self.text(high)}"

    def deviation_text(self, value: float, low: float, high: float) -> str:
        """Return a standard deviation with its interval, never as 0."""
        smallest = 10.0**-self.digits
        ends = [
            self.text(v) if v >= smallest / 2 else f"< {smallest:g}" for v in (value, low, high)
        ]
        return "-" if value != value else f"{ends[0]} ({ends[1]} to {ends[2]})"


def choose_metric(run: RunFolder, split: str, name: str | None) -> ComparedMetric:
    """Return the metric to compare, from any of the runs; `None` is the first of their profile.

    Raises:
        ConfigError: the profile does not score it case by case, or it is best at 0, so that its
            means cannot be ranked.
    """
    means, stated = run.metrics[split]["mean"], run.profile.get("metrics", {})
    facts = {metric: stated.get(metric) or state_by_name(metric, run.profile) for metric in means}
    scored = set(run.cases["metric"])
    scored |= {weighted for weighted, base in WEIGHTED.items() if base in scored}
    known = [metric for metric in means if metric in scored and facts[metric]["up"] is not None]
    options = f"one of {', '.join(known)}" if known else "another profile"
    name = name or next(iter(means))
    if name in facts and facts[name]["up"] is None:
        raise ConfigError(f"metric: {name} is best at 0, not high or low; choose {options}")
    if name not in known:
        profile = run.profile["name"]
        raise ConfigError(
            f"metric: profile {profile} does not score {name} case by case; choose {options}"
        )
    chosen = facts[name]
    label, unit = str(chosen["label"]), str(chosen["unit"])
    digits, up = int(chosen["digits"]), bool(chosen["up"])
    silent = chosen.get("silent")
    silent = float(up) if silent is None else float(silent)
    first = averages_cases_first(run.profile)
    bound = find_bounds(chosen)[0 if up else 1]
    worst = None if unit or math.isinf(bound) else bound
    return ComparedMetric(name, label, up, unit or label, digits, silent, first, worst)


def find_bounds(facts: Mapping[str, Any]) -> tuple[float, float]:
    """Return the smallest and the largest value of a metric that metrics.json states."""
    if (bounds := facts.get("bounds")) is None:
        return usual_bounds(str(facts["unit"]), facts["up"])
    low, high = bounds
    return -math.inf if low is None else low, math.inf if high is None else high


def state_by_name(name: str, profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a metrics.json of version 0.1.0 does not state, judged by the metric's name."""
    unit = next((length for length in LENGTHS if name.endswith(f"_{length}")), "")
    if name == "nsd" and "nsd_tolerance_mm" in profile:
        label = f"NSD ({profile['nsd_tolerance_mm']:g} mm)"
    elif unit:
        label = f"{name.removesuffix(f'_{unit}').upper()} ({unit})"
    else:
        label = LABELS.get(name, name.replace("_", " "))
    up = None if name in BEST_AT_ZERO else name not in LOWER_IS_BETTER
    silent = None if up is None else float(up)
    return {"label": label, "unit": unit, "up": up, "digits": 2 if unit else 4, "silent": silent}
