import math
from itertools import product

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from monai.metrics.utils import get_code_to_measure_table

from attnseg.metrics.surface import (
    Distances,
    assd,
    hd,
    hd95,
    hd95_pooled,
    nsd,
    nsd_voxels,
    surface_distances,
    surface_elements,
)


def box(shape, *ranges):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def voxel(shape, *index):
    return box(shape, *[(i, i + 1) for i in index])


# By hand


def test_shifted_box():
    """Two 4 x 4 squares, 2 columns apart, of 1 x 3 mm pixels: the far sides are 6 mm away."""
    a, b = box((8, 12), (2, 6), (2, 6)), box((8, 12), (2, 6), (4, 8))
    d = surface_distances(a, b, (1, 3))
    # By columns: 4 pixels at 6 mm, 2 at 3 mm, 2 shared, 2 shared and 2 a row away from the other.
    assert (
        np.sort(d.a_to_b).tolist() == np.sort(d.b_to_a).tolist() == [0] * 4 + [1, 1, 3, 3] + [6] * 4
    )
    assert hd(d) == hd95(d) == hd95_pooled(d) == 6
    assert assd(d) == pytest.approx(32 / 12)
    assert nsd_voxels(d, 0) == pytest.approx(8 / 24)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_spacing_along_each_axis(axis):
    """Two cubes, 2 voxels of 2.5 mm apart."""
    a, b = box((9, 9, 9), (2, 5), (2, 5), (2, 5)), box((9, 9, 9), (4, 7), (2, 5), (2, 5))
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 2.5
    assert hd(surface_distances(*(np.moveaxis(m, 0, axis) for m in (a, b)), spacing)) == 5


def test_equal_masks():
    a = box((6, 6), (1, 4), (2, 6))
    d = surface_distances(a, a, (1, 1))
    assert hd(d) == hd95(d) == assd(d) == 0
    assert nsd_voxels(d, 0) == nsd(surface_elements(a, a, (1, 1)), 0) == 1


def test_mask_at_the_border_has_a_surface_there():
    a, b = np.ones((5, 5), bool), voxel((5, 5), 2, 2)
    d = surface_distances(a, b, (1, 1))
    assert len(d.a_to_b) == 16
    assert d.b_to_a.tolist() == [2]
    assert hd(d) == pytest.approx(math.sqrt(8))
    assert assd(d) == pytest.approx((4 * math.sqrt(8) + 8 * math.sqrt(5) + 4 * 2 + 2) / 17)
    elements = surface_elements(a, b, (1, 1))
    # 16 along the sides of the array, 1 mm each, and half a diagonal at each of its 4 corners.
    assert len(elements.a_to_b) == 20
    assert elements.weights_a.sum() == pytest.approx(16 + 4 * math.sqrt(2) / 2)


def test_the_percentile_of_both_directions_together_is_another():
    d = Distances(np.arange(101.0), np.zeros(100))
    assert (hd(d), hd95(d), hd95_pooled(d)) == (100, 95, 90)


def test_single_voxels():
    """2 mm apart: the corners between them are 1 mm from the other's, the outer ones 2 mm.

    So are DeepMind's examples: https://github.com/google-deepmind/surface-distance, NSD 0.5.
    """
    a, b = voxel((9, 9, 9), 5, 6, 2), voxel((9, 9, 9), 5, 6, 4)
    d = surface_distances(a, b, (3, 2, 1))
    assert d.a_to_b.tolist() == d.b_to_a.tolist() == [2]
    elements = surface_elements(a, b, (3, 2, 1))
    assert np.sort(elements.a_to_b).tolist() == [1] * 4 + [2] * 4
    # An eighth of each face's area, as a vector: 2 x 1, 3 x 1 and 3 x 2 mm.
    assert elements.weights_a == pytest.approx([math.hypot(2, 3, 6) / 8] * 8)
    assert nsd(elements, 0.9) == 0
    assert nsd(elements, 1) == pytest.approx(0.5)
    assert nsd(elements, 2) == 1


def test_half_filled_cubes_one_voxel_apart():
    """NSD of DeepMind's test, https://github.com/google-deepmind/surface-distance: 0.836."""
    shape = (100, 100, 100)
    a, b = box(shape, (0, 50), (0, 100), (0, 100)), box(shape, (0, 51), (0, 100), (0, 100))
    assert nsd(surface_elements(a, b, (2, 1, 1)), 1) == pytest.approx(0.836, abs=5e-4)


def test_long_contours_weigh_more():
    """A bar of 1 x 3 mm pixels: its horizontal sides are 3 mm a pixel, its ends 1 mm."""
    weights = surface_elements(*[box((5, 9), (1, 4), (2, 7))] * 2, (1, 3)).weights_a
    values, counts = np.unique(weights.round(6), return_counts=True)
    assert values == pytest.approx([1, math.hypot(1, 3) / 2, 3], abs=1e-6)
    assert counts.tolist() == [4, 4, 8]


def test_one_slice_is_a_picture():
    a, b = box((6, 7), (1, 4), (1, 4)), box((6, 7), (2, 5), (3, 6))
    flat = surface_distances(a, b, (1.5, 2)), surface_elements(a, b, (1.5, 2))
    slices = [np.expand_dims(m, 0) for m in (a, b)]
    thick = surface_distances(*slices, (5, 1.5, 2)), surface_elements(*slices, (5, 1.5, 2))
    for one, other in zip(flat, thick, strict=True):
        assert all(np.array_equal(v, vars(other)[k]) for k, v in vars(one).items())
    assert len(flat[0].a_to_b) == 8  # of 9; the middle one is inside
    # In a volume of several slices it has faces above and below.
    volume = [np.pad(m, ((0, 1), (0, 0), (0, 0))) for m in slices]
    assert len(surface_distances(*volume, (5, 1.5, 2)).a_to_b) == 9
    assert len(surface_elements(*volume, (5, 1.5, 2)).a_to_b) == 2 * 16


def test_rounding_does_not_decide_what_is_within_the_tolerance():
    """3 pixels of 0.1 mm are 0.30000000000000004 mm apart."""
    masks = voxel((4, 6), 1, 0), voxel((4, 6), 1, 3)
    assert nsd_voxels(surface_distances(*masks, (0.1, 0.1)), 0.3) == 1
    assert nsd(surface_elements(*masks, (0.1, 0.1)), 0.3) == 1


@pytest.mark.parametrize("measure", [surface_distances, surface_elements])
def test_what_is_refused(measure):
    full = np.ones((3, 3), bool)
    with pytest.raises(ValueError, match="not empty"):
        measure(np.zeros((3, 3), bool), full, (1, 1))
    with pytest.raises(ValueError, match="one shape"):
        measure(full, np.ones((3, 4), bool), (1, 1))
    with pytest.raises(ValueError, match="each axis"):
        measure(full, full, (1, 1, 1))


def test_elements_of_four_axes_are_refused():
    full = np.ones((2, 2, 2, 2), bool)
    with pytest.raises(ValueError, match="two or three axes"):
        surface_elements(full, full, (1, 1, 1, 1))
    assert hd(surface_distances(full, full, (1, 1, 1, 1))) == 0


# By brute force, and by MONAI


def random_case(seed):
    """Noise, single voxels and boxes up to the border, in 2D or 3D; spacing and tolerance, mm."""
    rng = np.random.default_rng(seed)
    axes = 2 + seed % 2
    shape = tuple(rng.integers(2, 8, axes))

    def mask():
        kind = rng.integers(4)
        if kind == 0:
            return voxel(shape, *rng.integers(shape))
        if kind == 1:
            return box(shape, *[(i, None) for i in rng.integers(shape)])
        noise = rng.random(shape) < rng.uniform(0.05, 0.95)
        return noise | voxel(shape, *rng.integers(shape))

    spacing = tuple(rng.choice([0.5, 0.7, 1.0, 1.5, 3.0], axes).tolist())
    return mask(), mask(), spacing, float(rng.choice([0, 1, 1.5, 3]))


def inside(mask, index):
    return all(0 <= i < n for i, n in zip(index, mask.shape, strict=True)) and mask[tuple(index)]


def slow_surface(mask, spacing):
    steps = [s * row for s in (-1, 1) for row in np.eye(mask.ndim, dtype=int)]
    at = [i for i in np.argwhere(mask) if not all(inside(mask, i + step) for step in steps)]
    return np.array(at) * spacing


def contour_length(bits, spacing):
    """Marching squares: half a diagonal around each lone pixel, or a straight line."""
    upper_left, upper_right, lower_left, lower_right = bits
    half = math.hypot(*spacing) / 2
    if upper_left == lower_right and upper_right == lower_left:
        return 2 * half
    if sum(bits) != 2:
        return half
    return spacing[1] if upper_left == upper_right else spacing[0]


def slow_elements(mask, spacing):
    areas = get_code_to_measure_table(spacing)[0].tolist()
    points, weights = [], []
    for corner in np.ndindex(*[n + 1 for n in mask.shape]):
        around = product(*[(i - 1, i) for i in corner])
        bits = [int(inside(mask, index)) for index in around]
        if 0 < sum(bits) < len(bits):
            points.append(np.multiply(corner, spacing))
            area = areas[int("".join(map(str, bits)), 2)]
            weights.append(contour_length(bits, spacing) if mask.ndim == 2 else area)
    return np.array(points), np.array(weights)


def nearest(a, b):
    pairs = np.linalg.norm(a[:, None] - b[None], axis=2)
    return pairs.min(1), pairs.min(0)


def disagreements(seeds, measure):
    """Return the seeds and metrics whose values differ from those expected.

    Args:
        seeds: of random cases.
        measure: returns our values and the expected ones, by metric, of a random case.
    """
    wrong = []
    for seed in seeds:
        ours, expected = measure(*random_case(seed))
        assert ours.keys() == expected.keys()
        wrong += [
            (seed, name, value, expected[name])
            for name, value in ours.items()
            if value != pytest.approx(expected[name], rel=1e-6)
        ]
    return wrong


def measure_by_brute_force(a, b, spacing, tolerance):
    d, elements = surface_distances(a, b, spacing), surface_elements(a, b, spacing)
    slow = nearest(slow_surface(a, spacing), slow_surface(b, spacing))
    together = np.concatenate(slow)
    (points_a, weights_a), (points_b, weights_b) = (slow_elements(m, spacing) for m in (a, b))
    within = np.concatenate(nearest(points_a, points_b)) <= tolerance
    return measured(d, elements, tolerance), {
        "hd": together.max(),
        "hd95": max(np.percentile(s, 95) for s in slow),
        "hd95_pooled": np.percentile(together, 95),
        "assd": together.mean(),
        "nsd_voxels": (together <= tolerance).mean(),
        "nsd": np.average(within, weights=np.concatenate([weights_a, weights_b])),
    }


def measured(d, elements, tolerance):
    return {
        "hd": hd(d),
        "hd95": hd95(d),
        "hd95_pooled": hd95_pooled(d),
        "assd": assd(d),
        "nsd_voxels": nsd_voxels(d, tolerance),
        "nsd": nsd(elements, tolerance),
    }


def measure_by_monai(a, b, spacing, tolerance):
    masks = [torch.from_numpy(mask[None, None]) for mask in (a, b)]
    common = {"include_background": True, "spacing": [spacing]}
    d, elements = surface_distances(a, b, spacing), surface_elements(a, b, spacing)
    theirs = {
        "hd95": compute_hausdorff_distance(*masks, percentile=95, **common),
        "assd": compute_average_surface_distance(*masks, symmetric=True, **common),
        "nsd_voxels": compute_surface_dice(*masks, [tolerance], **common),
        "nsd": compute_surface_dice(*masks, [tolerance], use_subvoxels=True, **common),
    }
    ours = measured(d, elements, tolerance)
    return {name: ours[name] for name in theirs}, {k: v.item() for k, v in theirs.items()}


def test_brute_force_agrees():
    assert not disagreements(range(200), measure_by_brute_force)


def test_monai_agrees():
    assert not disagreements(range(50), measure_by_monai)
