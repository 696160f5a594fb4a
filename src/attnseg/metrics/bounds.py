"""The bounds of metrics, and the columns of any profile, for readers of scores without its code."""

import math

VOLUMES = ("truth_voxels", "predicted_voxels")  # scored for every case and class by any profile


def usual_bounds(unit: str, up: bool | None) -> tuple[float, float]:
    """Return the bounds of shares, of lengths and errors, and of errors of any sign."""
    if up is None:
        return -math.inf, math.inf
    return 0.0, 1.0 if up and not unit else math.inf
