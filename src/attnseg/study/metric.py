"""The metric that is compared: its unit, its digits, and which way is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnseg.errors import ConfigError
from attnseg.runs.finished import Run
from attnseg.study.values import WEIGHTED

LOWER = {"hd95_mm", "hd95_voxels", "hd_mm", "assd_mm", "hausdorff", "ece", "brier"}
SIGNED = {"volume_error"}  # 0 is best: means of it cannot be ranked
SHORT = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "weighted_jaccard": "weighted Jaccard",
    "nsd": "NSD",
    "hausdorff": "Hausdorff (share)",
}
UNITS = ("mm", "voxels")


@dataclass(frozen=True)
class Metric:
    """A number per case and class.

    Attributes:
        name: in files.
        label: in tables, with its unit.
        up: whether more is better.
    """

    name: str
    label: str
    up: bool

    @property
    def unit(self) -> str:
        """What differences are counted in."""
        return next((u for u in UNITS if self.name.endswith(f"_{u}")), self.label)

    @property
    def digits(self) -> int:
        """Decimal places in tables."""
        return 2 if self.unit in UNITS else 4

    def text(self, value: float) -> str:
        """Return a number as tables have it."""
        return "-" if value != value else f"{value:.{self.digits}f}"

    def between(self, low: float, high: float) -> str:
        """Return an interval as tables have it."""
        return "-" if low != low else f"{self.text(low)} to {self.text(high)}"


def choose(run: Run, split: str, name: str | None) -> Metric:
    """Return the metric to compare.

    Args:
        run: any of those compared.
        split: `val` or `test`.
        name: of the metric; `None` for the first of the run's profile.

    Raises:
        ConfigError: the profile does not score it case by case, or it has no better end.
    """
    means: Mapping[str, Any] = run.metrics[split]["mean"]
    scored = set(run.scores["metric"])
    scored |= {name for name, base in WEIGHTED.items() if base in scored}
    known = [metric for metric in means if metric in scored - SIGNED]
    name = name or next(iter(means))
    if name in SIGNED:
        raise ConfigError(f"metric: {name} is best at 0, not high or low; choose {_any(known)}")
    if name not in known:
        profile = run.profile["name"]
        raise ConfigError(
            f"metric: profile {profile} does not score {name} case by case; choose {_any(known)}"
        )
    return Metric(name, label(name, run.profile), name not in LOWER)


def _any(names: list[str]) -> str:
    return f"one of {', '.join(names)}" if names else "another profile"


def label(name: str, profile: Mapping[str, Any]) -> str:
    """Return a metric's name with its unit."""
    if name == "nsd" and "nsd_tolerance_mm" in profile:
        return f"NSD ({profile['nsd_tolerance_mm']:g} mm)"
    unit = next((u for u in UNITS if name.endswith(f"_{u}")), None)
    if unit is not None:
        return f"{name.removesuffix(f'_{unit}').upper()} ({unit})"
    return SHORT.get(name, name.replace("_", " "))
