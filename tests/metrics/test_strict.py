import math

import numpy as np
import pandas as pd
import pytest
import torch

from attnseg.metrics.masks import predicted_masks, target_masks
from attnseg.metrics.running import CaseDice
from attnseg.metrics.strict import Strict

SHAPE, SPACING = (4, 6, 8), (3.0, 1.0, 2.0)
DIAGONAL = math.sqrt(12**2 + 6**2 + 16**2)
EMPTY = np.zeros(SHAPE, bool)
ORGAN = EMPTY.copy()
ORGAN[1:3, 2:5, 2:6] = True  # 24 voxels


@pytest.mark.parametrize(
    ("truth", "prediction"), [(ORGAN, EMPTY), (EMPTY, ORGAN)], ids=["missed", "spurious"]
)
def test_missed_and_spurious_are_the_worst_there_is(truth, prediction):
    scores = Strict().score(truth, prediction, SPACING)
    assert scores == {"dice": 0, "jaccard": 0, "nsd": 0, "hd95_mm": pytest.approx(DIAGONAL)}


def test_both_empty_is_undefined():
    assert all(math.isnan(value) for value in Strict().score(EMPTY, EMPTY, SPACING).values())


def test_overlap_by_hand():
    shifted = np.roll(ORGAN, 1, 2)  # 18 of 24 voxels stay
    scores = Strict().score(ORGAN, shifted, SPACING)
    assert scores["dice"] == 2 * 18 / 48
    assert scores["jaccard"] == 18 / 30
    assert scores["hd95_mm"] == 2
    assert scores["nsd"] == 1  # no surface moved by more than 3 mm
    assert Strict(nsd_tolerance_mm=1).score(ORGAN, shifted, SPACING)["nsd"] < 1


def test_mean_is_over_cases_then_classes_and_counts_what_is_left_out():
    values = {"a": [1.0, 0.5, float("nan")], "b": [0.2, float("nan"), float("nan")]}
    rows = [
        (name, metric, v) for name, vs in values.items() for v in vs for metric in Strict.METRICS
    ]
    table = Strict().summarise(pd.DataFrame(rows, columns=["class", "metric", "value"]))
    assert list(table.index) == ["a", "b", "mean"]
    assert table.loc["a", "dice"] == 0.75
    assert table.loc["b", "hd95_mm"] == pytest.approx(0.2)
    assert table.loc["mean", "dice"] == pytest.approx((0.75 + 0.2) / 2)
    assert table["undefined"].tolist() == [1, 2, 3]


def test_a_class_nobody_has_is_undefined_not_zero():
    rows = [(n, m, v) for n, v in (("a", 0.5), ("b", float("nan"))) for m in Strict.METRICS]
    table = Strict().summarise(pd.DataFrame(rows, columns=["class", "metric", "value"]))
    assert math.isnan(table.loc["b", "dice"])
    assert table.loc["mean", "dice"] == 0.5


def test_digest_changes_with_the_convention():
    assert Strict().digest == Strict().digest
    assert Strict().digest != Strict(nsd_tolerance_mm=2).digest


def test_running_dice_agrees_with_the_profile():
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 3, 2, 4, 5, 6)) < 0.4  # case, class, slice, height, width
    truth[0, 0], prediction[0, 0], prediction[1, 1] = False, False, False
    metric = CaseDice(3, 2)
    for case, at in [(c, s) for s in range(4) for c in range(3)]:
        slices = [torch.from_numpy(m[case, :, at])[None] for m in (prediction, truth)]
        metric.update(*slices, torch.tensor([case]))
    for k, value in enumerate(metric.compute().tolist()):
        scores = [
            Strict().score(truth[c, k], prediction[c, k], (1, 1, 1))["dice"] for c in range(3)
        ]
        assert value == pytest.approx(np.nanmean(scores))


def test_decisions():
    logits = torch.tensor([[[[2.0, -1.0]], [[1.0, 3.0]], [[-1.0, 2.9]]]])
    assert predicted_masks(logits, True).int().tolist() == [[[[1, 0]], [[1, 1]], [[0, 1]]]]
    assert predicted_masks(logits, False).int().tolist() == [[[[0, 1]], [[0, 0]]]]
    target = torch.tensor([[[2, 0]]])
    assert target_masks(target, False, 2).int().tolist() == [[[[0, 0]], [[1, 0]]]]
