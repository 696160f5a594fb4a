"""One value converts between label maps, masks, targets and logits."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from attnseg.data.labels import Labels
from tests.limits import HANG

EXCLUSIVE, OVERLAPPING = Labels(("a", "b")), Labels(("a", "b"), overlapping=True)


def test_a_label_map_by_hand():
    label_map = np.array([[0, 1], [2, 3]], np.uint8)
    assert OVERLAPPING.split(label_map).tolist() == [
        [[False, True], [False, True]],
        [[False, False], [True, True]],
    ]
    assert EXCLUSIVE.split(label_map[:, :1]).tolist() == [[[False], [False]], [[False], [True]]]
    assert (EXCLUSIVE.largest_value, OVERLAPPING.largest_value) == (2, 3)
    assert (EXCLUSIVE.channels, OVERLAPPING.channels) == (3, 2)
    assert (EXCLUSIVE.one_per_pixel, OVERLAPPING.one_per_pixel) == (True, False)
    assert Labels(("a",), overlapping=True).one_per_pixel


@pytest.mark.parametrize("overlapping", [True, False])
def test_splitting_and_merging_are_inverse(overlapping):
    labels = Labels(tuple("abcde"), overlapping)
    rng = np.random.default_rng(0)
    label_map = rng.integers(0, labels.largest_value + 1, (3, 4, 5)).astype(np.uint8)
    masks = labels.split(label_map)
    assert (masks.shape, masks.dtype) == ((5, 3, 4, 5), bool)
    merged = labels.merge(masks)
    assert merged.dtype == np.uint8
    assert np.array_equal(merged, label_map)
    for index, mask in enumerate(masks):
        assert np.array_equal(labels.mask_of(label_map, index), mask)


def test_targets():
    label_maps = torch.tensor([[[0, 1], [2, 3]]], dtype=torch.uint8)
    target = OVERLAPPING.target(label_maps)
    assert target.dtype == torch.uint8
    assert target.tolist() == [[[[0, 1], [0, 1]], [[0, 0], [1, 1]]]]
    assert EXCLUSIVE.target(label_maps) is label_maps


def test_decisions_by_hand():
    logits = np.array([[[[2.0, -1.0]], [[1.0, 3.0]], [[-1.0, 2.9]]]], np.float32)
    three = Labels(("a", "b", "c"), overlapping=True)
    assert three.decide(logits)[:, 0].astype(int).tolist() == [[[1, 0]], [[1, 1]], [[0, 1]]]
    assert EXCLUSIVE.decide(logits)[:, 0].astype(int).tolist() == [[[0, 1]], [[0, 0]]]
    tie = np.zeros((1, 3, 1, 1), np.float32)
    assert not EXCLUSIVE.decide(tie).any()  # the background comes first


@pytest.mark.parametrize("overlapping", [True, False])
def test_decisions_agree_with_probabilities(overlapping):
    labels = Labels(tuple("abcd")[: 4 if overlapping else 3], overlapping)
    logits = np.random.default_rng(0).normal(size=(2, labels.channels, 5, 6)).astype(np.float32)
    tensor = torch.from_numpy(logits)
    probabilities = (tensor.sigmoid() if overlapping else tensor.softmax(1)).numpy()
    masks = labels.decide(logits)
    assert (masks.shape, masks.dtype) == ((len(labels), 2, 5, 6), bool)
    assert np.array_equal(masks, labels.decide_probabilities(probabilities))
    if overlapping:
        assert np.array_equal(masks, (logits > 0).swapaxes(0, 1))
    else:
        winner = tensor.argmax(1).numpy()
        assert np.array_equal(masks, winner == np.arange(1, 4)[:, None, None, None])


def test_labels_need_no_torch():
    code = "import sys; import attnseg.data.labels; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG)
