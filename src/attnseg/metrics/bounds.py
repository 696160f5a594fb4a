"""Bounds of metrics and columns common to all profiles, without the code of the profiles."""

import math

VOLUMES = ("truth_voxels", "predicted_voxels")  # scored for every case and class by any profile


def usual_bounds(unit: str, up: bool | None) -> tuple[float, float]:
    """Return the bounds of shares, 0 to 1, of lengths from 0 on, and of errors of any sign."""
    if up is None:
        return -math.inf, math.inf
    return 0.0, math.inf if unit else 1.0
