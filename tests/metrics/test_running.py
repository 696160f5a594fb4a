import math

import numpy as np
import pytest
import torch

from attnseg.data.labels import Labels
from attnseg.metrics.profiles.strict import Strict
from attnseg.metrics.running import CaseDice, count_areas, count_codes, multiply_masks

SHAPE, SPACING = (4, 6, 8), (3.0, 1.0, 2.0)
ORGAN = np.zeros(SHAPE, bool)
ORGAN[1:3, 2:5, 2:6] = True  # 24 voxels


def test_strict_by_hand():
    shifted = np.roll(ORGAN, 1, 2)  # 18 of 24 voxels stay
    scores = Strict().score(ORGAN, shifted, SPACING)
    assert scores["dice"] == 2 * 18 / 48
    assert scores["jaccard"] == 18 / 30
    assert scores["hd95_mm"] == scores["hd_mm"] == 2
    assert scores["precision"] == scores["sensitivity"] == 18 / 24
    assert scores["volume_error"] == 0
    assert scores["lesion_f1"] == 1
    assert scores["nsd"] == 1  # no surface moved by more than 3 mm
    assert Strict(nsd_tolerance_mm=1).score(ORGAN, shifted, SPACING)["nsd"] < 1


def test_unknown_spacing_leaves_only_what_needs_none():
    scores = Strict().score(ORGAN, np.roll(ORGAN, 1, 2), None)
    undefined = {name for name, value in scores.items() if math.isnan(value)}
    assert undefined == {"hd_mm", "hd95_mm", "assd_mm", "nsd"}


def test_running_dice_agrees_with_the_profile():
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 3, 2, 4, 5, 6)) < 0.4  # case, class, slice, height, width
    truth[0, 0], prediction[0, 0], prediction[1, 1] = False, False, False
    metric = CaseDice(3, 2)
    for case, at in [(c, s) for s in range(4) for c in range(3)]:
        logits = torch.from_numpy(prediction[case, :, at])[None] * 2.0 - 1
        target = torch.from_numpy(truth[case, :, at])[None].to(torch.uint8)
        metric.update(count_areas(logits, target, True), torch.tensor([case]))
    for k, value in enumerate(metric.compute().tolist()):
        scores = [
            Strict().score(truth[c, k], prediction[c, k], (1, 1, 1))["dice"] for c in range(3)
        ]
        assert value == pytest.approx(np.nanmean(scores))


def test_areas_of_exclusive_classes_are_those_of_their_masks():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6), dtype=torch.uint8)
    labels = Labels(("a", "b", "c"))
    predicted, true = labels.decide(logits.numpy()), labels.split(target.numpy())
    expected = [mask.sum((2, 3)).T for mask in (predicted & true, predicted, true)]
    assert np.array_equal(count_areas(logits, target, False).numpy(), np.stack(expected, -1))


def test_tolerances_by_class():
    """Moved by 4 mm: within the tolerance of one class, not of the other."""
    pair = np.stack([ORGAN, ORGAN]), np.stack([np.roll(ORGAN, 2, 2)] * 2)
    profile = Strict(nsd_tolerances_mm={"b": 4.0})
    found = profile.score_case(*pair, SPACING, ("a", "b"))
    nsd = {name: value for name, metric, value in found if metric == "nsd"}
    assert nsd["a"] < 1
    assert nsd["b"] == 1
    assert profile.digest != Strict().digest
    assert profile.label(profile.metrics[3]) == "NSD (3 mm, b 4)"


def test_confusion_matrices_by_products_are_those_by_counts():
    """The first is for GPUs. Autocast would round its counts."""
    decided, target = torch.randint(5, (2, 3, 40, 40))
    wanted = count_codes(decided, target, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(multiply_masks(decided, target, 5), wanted)
    assert wanted.sum((1, 2)).tolist() == [1600] * 3
