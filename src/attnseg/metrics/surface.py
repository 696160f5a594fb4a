"""Distances between the surfaces of two masks, exact for any voxel spacing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


def surface_distances(
    a: Mask, b: Mask, spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of every surface voxel of each mask to the nearest surface voxel of the other.

    A surface voxel belongs to the mask and shares a face with the outside; the outside of the array
    counts as outside the mask.

    Args:
        a: not empty, any number of axes.
        b: not empty, the shape of `a`.
        spacing: voxel size along each axis, mm.

    Returns:
        Distances from `a` to `b` and from `b` to `a`, mm, one per surface voxel.

    Raises:
        ValueError: a mask is empty or the shapes differ.
    """
    if a.shape != b.shape or not a.any() or not b.any():
        raise ValueError(f"need two masks of one shape, not empty; got {a.shape} and {b.shape}")
    either = a | b
    box = tuple(
        slice(hit.min(), hit.max() + 1)
        for axis in range(a.ndim)
        for hit in [np.flatnonzero(either.any(tuple(i for i in range(a.ndim) if i != axis)))]
    )
    surface_a, surface_b = (mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (a, b))
    to_a, to_b = (
        ndimage.distance_transform_edt(~surface, sampling=spacing)
        for surface in (surface_a, surface_b)
    )
    return to_b[surface_a], to_a[surface_b]


def hd95(a_to_b: NDArray[np.float64], b_to_a: NDArray[np.float64]) -> float:
    """95th percentile Hausdorff distance: the larger of the two directions' percentiles."""
    return float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)))


def nsd(a_to_b: NDArray[np.float64], b_to_a: NDArray[np.float64], tolerance: float) -> float:
    """Normalised surface distance: share of both surfaces' voxels within `tolerance` mm.

    Voxels are counted, not weighted by the area of surface they stand for.
    """
    within = (a_to_b <= tolerance).sum() + (b_to_a <= tolerance).sum()
    return float(within / (a_to_b.size + b_to_a.size))
