import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_calibration_error,
    binary_f1_score,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
    binary_specificity,
)

from attnseg.metrics.calibration import Calibration
from attnseg.metrics.overlap import Overlap, lesion_f1


def test_counts_by_hand():
    truth = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
    prediction = np.array([[0, 1, 1, 1], [1, 0, 0, 0]], bool)
    found = Overlap.of(truth, prediction)
    assert (found.tp, found.fp, found.fn, found.tn) == (2, 2, 1, 3)
    assert found.dice == 4 / 7
    assert found.jaccard == 2 / 5
    assert found.volume_error == 1 / 3
    assert found.accuracy == 5 / 8


@given(arrays(bool, (2, 3, 4, 5)))
def test_a_library_agrees(masks):
    truth, prediction = masks
    found = Overlap.of(truth, prediction)
    pair = torch.from_numpy(prediction).int(), torch.from_numpy(truth).int()
    theirs = {
        "dice": binary_f1_score, "jaccard": binary_jaccard_index, "precision": binary_precision,
        "sensitivity": binary_recall, "specificity": binary_specificity,
        "accuracy": binary_accuracy,
    }  # fmt: skip
    for name, function in theirs.items():
        ours = getattr(found, name)
        if not math.isnan(ours):  # it calls 0 / 0 zero
            assert ours == pytest.approx(function(*pair).item(), abs=1e-6)


def test_nothing_over_nothing_is_undefined():
    empty = np.zeros((2, 2), bool)
    found = Overlap.of(empty, empty)
    for name in ("dice", "jaccard", "precision", "sensitivity", "volume_error"):
        assert math.isnan(getattr(found, name))
    assert found.specificity == found.accuracy == 1


def test_lesions_by_hand():
    truth, prediction = np.zeros((2, 9, 9), bool)
    truth[0, 0:3], truth[4, 4], truth[8, 8] = True, True, True  # three lesions
    prediction[0, 1], prediction[5, 5], prediction[7, 0] = True, True, True
    # The first is found; (5, 5) touches the second only at a corner, outside it; two are wrong.
    assert lesion_f1(truth, prediction) == 2 * 1 / (2 * 1 + 2 + 2)
    truth[5, 5] = True  # now part of the second, connected over the corner
    assert lesion_f1(truth, prediction) == 2 * 2 / (2 * 2 + 1 + 1)
    assert lesion_f1(truth, truth) == 1
    assert math.isnan(lesion_f1(prediction & False, prediction & False))


def test_calibration_by_hand():
    metric = Calibration(1)
    probability = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.1, 0.1]).view(1, 1, 2, 3)
    truth = torch.tensor([1, 1, 1, 0, 0, 0]).bool().view(1, 1, 2, 3)
    metric.update(probability, truth)
    assert metric.ece()[0] == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert metric.brier()[0] == pytest.approx((3 * 0.01 + 0.81 + 2 * 0.01) / 6)


def test_calibration_in_parts_and_by_a_library():
    torch.manual_seed(0)
    probability = torch.rand(6, 2, 8, 9)
    truth = torch.rand(6, 2, 8, 9) < probability**2
    whole, parts = Calibration(2), Calibration(2)
    whole.update(probability, truth)
    for one in range(6):
        parts.update(probability[one : one + 1], truth[one : one + 1])
    assert np.allclose(whole.ece(), parts.ece())
    assert np.allclose(whole.brier(), parts.brier())
    for k in range(2):
        # The library's error is of the predicted class; with 1 - p added it is of the class itself.
        p, t = probability[:, k].flatten(), truth[:, k].flatten()
        edges = (p * 15).long().clamp(max=14)
        gaps = [
            (t[edges == b].float().mean() - p[edges == b].mean()).abs()
            * (edges == b).float().mean()
            for b in range(15)
        ]
        assert whole.ece()[k] == pytest.approx(float(sum(gaps)), abs=1e-6)
        assert whole.brier()[k] == pytest.approx(((p - t.float()) ** 2).mean().item(), abs=1e-6)
    sure = (probability > 0.5).float()
    assert binary_calibration_error(sure.flatten(), (sure > 0).int().flatten()).item() == 0
    perfect = Calibration(2)
    perfect.update(sure, sure.bool())
    assert perfect.ece().tolist() == perfect.brier().tolist() == [0, 0]
