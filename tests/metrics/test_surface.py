import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance

from attnseg.metrics.surface import hd95, nsd, surface_distances


def box(shape, *ranges):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def test_shifted_box_by_hand():
    """Two 4 x 4 squares, 2 columns apart, of 1 x 3 mm pixels: the far sides are 6 mm away."""
    a, b = box((8, 12), (2, 6), (2, 6)), box((8, 12), (2, 6), (4, 8))
    a_to_b, b_to_a = surface_distances(a, b, (1, 3))
    assert len(a_to_b) == len(b_to_a) == 12  # of 16 pixels, 4 lie inside
    assert a_to_b.max() == b_to_a.max() == 6
    assert hd95(a_to_b, b_to_a) == 6
    # Top and bottom rows overlap in 2 of 4 pixels; elsewhere they are 3 or 6 mm away.
    assert nsd(a_to_b, b_to_a, 0) == pytest.approx(8 / 24)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_spacing_along_each_axis(axis):
    """Two cubes, 2 voxels of 2.5 mm apart."""
    a, b = box((9, 9, 9), (2, 5), (2, 5), (2, 5)), box((9, 9, 9), (4, 7), (2, 5), (2, 5))
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 2.5
    distances = surface_distances(np.moveaxis(a, 0, axis), np.moveaxis(b, 0, axis), spacing)
    assert max(d.max() for d in distances) == 5


def test_equal_masks():
    a = box((6, 6), (1, 4), (2, 6))
    distances = surface_distances(a, a, (1, 1))
    assert hd95(*distances) == 0
    assert nsd(*distances, 0) == 1


def test_mask_at_the_border_has_a_surface_there():
    a, b = np.ones((5, 5), bool), box((5, 5), (2, 3), (2, 3))
    a_to_b, b_to_a = surface_distances(a, b, (1, 1))
    assert len(a_to_b) == 16
    assert b_to_a.tolist() == [2]


blobs = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).random((2, 5, 6, 7)) < 0.3
)


@given(blobs, st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3))
def test_brute_force_agrees(masks, spacing):
    a, b = masks
    a[2, 2, 2] = b[1, 1, 1] = True

    def surface(mask):
        padded = np.pad(mask, 1)
        inner = np.ones_like(mask)
        for axis in range(3):
            for step in (0, 2):
                at = [slice(1, -1)] * 3
                at[axis] = slice(step, step + mask.shape[axis])
                inner &= padded[tuple(at)]
        return np.argwhere(mask & ~inner) * spacing

    points_a, points_b = surface(a), surface(b)
    pairs = np.linalg.norm(points_a[:, None] - points_b[None], axis=2)
    a_to_b, b_to_a = surface_distances(a, b, spacing)
    assert np.allclose(np.sort(a_to_b), np.sort(pairs.min(1)))
    assert np.allclose(np.sort(b_to_a), np.sort(pairs.min(0)))


@pytest.mark.parametrize("seed", range(5))
def test_hd95_agrees_with_monai(seed):
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(
        np.random.default_rng(seed).standard_normal((2, 12, 20, 20)), (0, 2, 2, 2)
    )
    a, b = noise > 0
    tensors = [torch.from_numpy(mask[None, None]) for mask in (a, b)]
    spacing = (3.0, 1.5, 1.63)
    theirs = compute_hausdorff_distance(
        *tensors, include_background=True, percentile=95, spacing=[spacing]
    )
    assert hd95(*surface_distances(a, b, spacing)) == pytest.approx(theirs.item(), abs=1e-4)


def test_empty_masks_are_refused():
    with pytest.raises(ValueError, match="not empty"):
        surface_distances(np.zeros((3, 3), bool), np.ones((3, 3), bool), (1, 1))
