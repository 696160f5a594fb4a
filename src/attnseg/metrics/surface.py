"""Distances between the surfaces of two masks, exact for any voxel spacing.

Two notions of surface: voxels (Hausdorff distances, ASSD) and elements that weigh the area they
stand for (NSD). In both, axes of length 1 are dropped as long as two axes are left: a picture
stored as a volume of one slice has a contour, not two faces.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Distances:
    """Distances, mm, of each surface voxel of two masks to the nearest one of the other mask."""

    a_to_b: Floats
    b_to_a: Floats


@dataclass(frozen=True)
class SurfaceElements:
    """Distances like those of `Distances`, of surface elements, and the surface each stands for.

    The weights are in mm^2 in 3D, mm in 2D.
    """

    a_to_b: Floats
    b_to_a: Floats
    weights_a: Floats
    weights_b: Floats


def surface_distances(
    a: Mask, b: Mask, spacing: Sequence[float], flat_axes: bool = False
) -> Distances:
    """Measure the distances between surface voxels.

    A surface voxel belongs to the mask and shares a face with the outside; the outside of the array
    counts as outside the mask.

    Args:
        a: mask that is not empty, with any number of axes.
        b: mask of the same shape, not empty.
        spacing: voxel size along each axis, mm.
        flat_axes: keep axes of length 1, so that every voxel of a single slice is surface.
    """
    a, b, voxel = _prepare(a, b, spacing, flat_axes)
    points_a, points_b = (_points(_surface(mask), voxel) for mask in (a, b))
    return Distances(_nearest(points_a, points_b), _nearest(points_b, points_a))


def hd_of_voxels(a: Mask, b: Mask, spacing: Sequence[float]) -> float:
    """Return the Hausdorff distance, mm, of all voxels of two masks instead of their surfaces.

    They differ where a mask is hollow. The arguments are those of `surface_distances`.
    """
    a, b, voxel = _prepare(a, b, spacing)

    def farthest(of: Mask, to: Mask) -> float:
        outside = of & ~to  # The nearest voxel of all others lies on the surface of `to`.
        distances = _nearest(_points(outside, voxel), _points(_surface(to), voxel))
        return float(distances.max(initial=0.0))

    return max(farthest(a, b), farthest(b, a))


def surface_elements(a: Mask, b: Mask, spacing: Sequence[float]) -> SurfaceElements:
    """Measure the distances between surface elements.

    Elements lie at the corners of voxels whose 2 x 2 x 2 (2D: 2 x 2) voxels are neither all inside
    nor all outside the mask. Which of them are inside determines the area (length) of surface that
    passes there, after marching cubes: Nikolov et al. 2021, https://arxiv.org/abs/1809.04430, and
    https://github.com/google-deepmind/surface-distance. The outside of the array counts as outside.

    The arguments are those of `surface_distances`; the masks have two or three axes.
    """
    # Here, since it imports all of MONAI, which takes more than a second.
    from monai.metrics.utils import get_code_to_measure_table

    if a.ndim not in (2, 3):
        raise ValueError(f"need two or three axes; got {a.shape}")
    a, b, voxel = _prepare(a, b, spacing)
    # MONAI's copy of DeepMind's table.
    table = get_code_to_measure_table(voxel)[0].double().numpy()  # type: ignore[no-untyped-call]
    codes_a, codes_b = _codes(a), _codes(b)
    at_a, at_b = ((codes != 0) & (codes != len(table) - 1) for codes in (codes_a, codes_b))
    points_a, points_b = _points(at_a, voxel), _points(at_b, voxel)
    return SurfaceElements(
        a_to_b=_nearest(points_a, points_b),
        b_to_a=_nearest(points_b, points_a),
        weights_a=table[codes_a[at_a]],
        weights_b=table[codes_b[at_b]],
    )


def hd(d: Distances) -> float:
    """Return the Hausdorff distance, mm."""
    return float(max(d.a_to_b.max(), d.b_to_a.max()))


def hd95(d: Distances) -> float:
    """Return the 95th percentile Hausdorff distance, mm: the larger of the two directions' values.

    MONAI uses this convention, too; see `hd95_pooled` for the other one.
    """
    return float(max(np.percentile(d.a_to_b, 95), np.percentile(d.b_to_a, 95)))


def hd95_pooled(d: Distances) -> float:
    """Return the 95th percentile of both directions' distances together, mm, as medpy does."""
    return float(np.percentile(np.concatenate([d.a_to_b, d.b_to_a]), 95))


def assd(d: Distances) -> float:
    """Return the average symmetric surface distance, mm, over all surface voxels of both masks.

    MONAI does the same; medpy's `assd` averages the means of the two directions.
    """
    return float((d.a_to_b.sum() + d.b_to_a.sum()) / (d.a_to_b.size + d.b_to_a.size))


def nsd(elements: SurfaceElements, tolerance: float) -> float:
    """Return the share of both surfaces that lies within `tolerance` mm of the other surface.

    This is DeepMind's definition of the normalised surface distance (see `surface_elements`). By
    default, MONAI counts surface voxels, as `nsd_voxels` does; with `use_subvoxels=True` it agrees.
    """
    within = (
        elements.weights_a[_within(elements.a_to_b, tolerance)].sum()
        + elements.weights_b[_within(elements.b_to_a, tolerance)].sum()
    )
    return float(within / (elements.weights_a.sum() + elements.weights_b.sum()))


def nsd_voxels(d: Distances, tolerance: float) -> float:
    """Return the share of both masks' surface voxels within `tolerance` mm of the other mask."""
    within = _within(d.a_to_b, tolerance).sum() + _within(d.b_to_a, tolerance).sum()
    return float(within / (d.a_to_b.size + d.b_to_a.size))


def _prepare(
    a: Mask, b: Mask, spacing: Sequence[float], flat_axes: bool = False
) -> tuple[Mask, Mask, Floats]:
    """Check two masks, drop axes of length 1, and crop both to the box that holds them."""
    if a.shape != b.shape or not a.any() or not b.any():
        raise ValueError(f"need two masks of one shape, not empty; got {a.shape} and {b.shape}")
    if len(spacing) != a.ndim:
        raise ValueError(f"need a spacing for each axis of {a.shape}; got {len(spacing)}")
    voxel = np.asarray(spacing, dtype=np.float64)
    while a.ndim > 2 and 1 in a.shape and not flat_axes:
        axis = a.shape.index(1)
        a, b, voxel = a.squeeze(axis), b.squeeze(axis), np.delete(voxel, axis)
    box = bounding_box(a | b)
    return a[box], b[box], voxel


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box that holds the mask."""
    axes = range(mask.ndim)
    hits = [np.flatnonzero(mask.any(tuple(i for i in axes if i != axis))) for axis in axes]
    return tuple(slice(hit[0], hit[-1] + 1) for hit in hits)


def _surface(mask: Mask) -> Mask:
    """Return the voxels of the mask that share a face with the outside."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        to, of = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        to[1:] &= of[:-1]
        to[:-1] &= of[1:]
        to[[0, -1]] = False
    return mask & ~inner


def _codes(mask: Mask) -> NDArray[np.uint8]:
    """Return for each corner `[n + 1, ...]` a bit per adjacent voxel, set if it is in the mask.

    The first voxel in C order is the highest bit, as in DeepMind's table.
    """
    codes = np.pad(mask, 1).view(np.uint8)
    for step, axis in enumerate(reversed(range(mask.ndim))):
        along = np.moveaxis(codes, axis, 0)
        first = np.left_shift(along[:-1], 2**step, dtype=np.uint8)
        codes = np.moveaxis(first | along[1:], 0, axis)
    return codes


def _points(at: Mask, voxel: Floats) -> Floats:
    """Return the positions `[n, axes]`, mm, at which a mask is true."""
    return np.multiply(np.argwhere(at), voxel, dtype=np.float64)


def _nearest(points: Floats, others: Floats) -> Floats:
    """Return the distance of every point `[n, axes]` to the nearest of the others `[m, axes]`."""
    # A tree of surface points, because a distance transform pays for the whole box: a liver of
    # 100 x 250 x 300 voxels takes 0.2 s against 1.3 s, two organs far apart 0.6 s against 12 s, but
    # noise that fills its box 0.7 s against 0.4 s. Cells split in the middle and left loose are
    # built faster than SciPy's default and answer far points three times as fast. One thread,
    # because classes are scored side by side (see `Profile.score_case`), which gains more.
    tree = cKDTree(others, leafsize=32, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0], dtype=np.float64)


def _within(distances: Floats, tolerance: float) -> Mask:
    # Rounding must not decide: 3 voxels of 0.1 mm are 0.3 mm away, not 0.30000000000000004.
    return distances <= tolerance * (1 + 1e-9)
