"""The `strict` metric profile: a convention that does not flatter.

- Missed or spurious (one of truth and prediction is empty): Dice, Jaccard and NSD are 0, HD95 is
  the image's diagonal in mm.
- Both empty: undefined, left out of every mean and counted.
- In 3D per case, with the voxel spacing; mean over cases, then over classes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from attnseg.metrics.surface import Mask, hd95, nsd, surface_distances


@dataclass(frozen=True)
class Strict:
    """The profile and what can be chosen in it.

    Attributes:
        nsd_tolerance_mm: distance up to which surfaces agree. 3 mm is ours: the slice thickness of
            the UW-Madison scans, below which a surface cannot be placed along the axis.
        version: raised whenever the definition of a metric changes.
    """

    nsd_tolerance_mm: float = 3.0
    version: int = 1
    name: str = "strict"

    METRICS = ("dice", "jaccard", "hd95_mm", "nsd")

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with anything that changes a number."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def describe(self) -> dict[str, str | float]:
        """Return name, digest and conventions, for the files that hold numbers."""
        return {
            **asdict(self),
            "digest": self.digest,
            "unit": "case in 3D; mean over cases, then classes",
            "missed_or_spurious": "dice 0, jaccard 0, nsd 0, hd95_mm = image diagonal",
            "both_empty": "undefined, excluded and counted",
            "hd95_mm": "larger of the two directed 95th percentiles, mm",
            "nsd": f"share of surface voxels within {self.nsd_tolerance_mm} mm",
        }

    def score(self, truth: Mask, prediction: Mask, spacing: Sequence[float]) -> dict[str, float]:
        """Score one class of one case.

        Args:
            truth: `[S, H, W]`.
            prediction: `[S, H, W]`.
            spacing: voxel size along S, H, W, mm.

        Returns:
            A value per metric of `METRICS`, NaN where both masks are empty.
        """
        overlap = np.count_nonzero(truth & prediction)
        total = np.count_nonzero(truth) + np.count_nonzero(prediction)
        if total == 0:
            return dict.fromkeys(self.METRICS, float("nan"))
        if not truth.any() or not prediction.any():
            diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
            return {"dice": 0.0, "jaccard": 0.0, "hd95_mm": diagonal, "nsd": 0.0}
        distances = surface_distances(truth, prediction, spacing)
        return {
            "dice": 2 * overlap / total,
            "jaccard": overlap / (total - overlap),
            "hd95_mm": hd95(*distances),
            "nsd": nsd(*distances, self.nsd_tolerance_mm),
        }

    def summarise(self, cases: pd.DataFrame) -> pd.DataFrame:
        """Average over cases.

        Args:
            cases: a row per case, class and metric: columns `class`, `metric`, `value`.

        Returns:
            A row per class, then `mean` over them; a column per metric, and `undefined`, the number
            of cases left out because truth and prediction are both empty.
        """
        order = list(dict.fromkeys(cases["class"]))
        table = cases.pivot_table(
            index="class", columns="metric", values="value", aggfunc="mean", dropna=False
        ).reindex(index=order, columns=list(self.METRICS))
        dice = cases[cases["metric"] == "dice"]
        table["undefined"] = dice["value"].isna().groupby(dice["class"]).sum().reindex(order)
        mean = table[list(self.METRICS)].mean()
        table.loc["mean"] = [*mean, table["undefined"].sum()]
        return table
