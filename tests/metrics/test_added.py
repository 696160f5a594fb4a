"""Metrics by themselves and the conventions at the edges, against definitions written anew."""

import math

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from monai.losses.cldice import soft_skel
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from attnseg.config.build import build
from attnseg.config.nodes import Component
from attnseg.contracts import profiles as contracts
from attnseg.evaluation.reliability import write_reliability
from attnseg.metrics.added.boundary_iou import BoundaryIoU
from attnseg.metrics.added.cldice import CentrelineDice, skeletonise
from attnseg.metrics.added.objects import PanopticQuality, SizedRecall
from attnseg.metrics.added.volumes import AbsoluteVolumeError, VolumeSimilarity
from attnseg.metrics.calibration import Calibration
from attnseg.metrics.profiles.detailed import Detailed
from attnseg.metrics.profiles.nnunet import NNUNet
from attnseg.metrics.profiles.profile import Metric, SingleMetric
from attnseg.metrics.profiles.strict import Strict
from attnseg.metrics.profiles.transunet import TransUNet
from attnseg.metrics.profiles.uw_madison import UWMadison
from tests.metrics.test_profiles import EMPTY, ORGAN, PROFILES, STATES, summarised

SPACING = (3.0, 1.0, 2.0)


def random_masks(seed, shape=(6, 24, 30)):
    """Blobs with holes and specks, and the same a little different."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), (0.6, 1.5, 1.5))
    return noise > 0.12, noise + 0.04 * rng.standard_normal(shape) > 0.14


MASKS = [random_masks(seed) for seed in range(6)] + [
    random_masks(9, (1, 40, 50)),
    random_masks(10, (1, 7, 9)),
]


def test_volumes_by_hand():
    half = ORGAN.copy()
    half[1] = False  # 20 of 40 voxels
    assert AbsoluteVolumeError().score(ORGAN, half, None) == 0.5
    assert AbsoluteVolumeError().score(half, ORGAN, None) == 1.0  # the signed error is +1
    assert VolumeSimilarity().score(half, ORGAN, None) == pytest.approx(1 - 20 / 60)
    assert VolumeSimilarity().score(np.roll(ORGAN, 1, 2), ORGAN, None) == 1


def test_cldice_is_that_of_the_paper_on_the_paper_s_skeleton():
    middle = [np.pad(mask, ((1, 1), (0, 0), (0, 0))) for mask in random_masks(11, (1, 20, 24))]
    for truth, prediction in (*MASKS, middle):
        lines = []
        for mask in (truth, prediction):
            plane = np.pad(mask[0] if len(mask) == 1 else mask, 1)  # outside is background
            soft = soft_skel(torch.from_numpy(plane[None, None].astype(np.float32)), 30)
            lines.append(soft[0, 0].numpy()[(slice(1, -1),) * plane.ndim].reshape(mask.shape) > 0)
            np.testing.assert_array_equal(skeletonise(mask), lines[-1])
        precision = (lines[1] & truth).sum() / lines[1].sum()
        sensitivity = (lines[0] & prediction).sum() / lines[0].sum()
        expected = 2 * precision * sensitivity / (precision + sensitivity)
        assert CentrelineDice().score(truth, prediction, None) == pytest.approx(expected)
    apart = np.zeros((1, 9, 9), bool), np.zeros((1, 9, 9), bool)
    apart[0][0, 1, 1:8], apart[1][0, 7, 1:8] = True, True
    assert CentrelineDice().score(*apart, None) == 0


def test_boundary_iou_is_that_of_the_paper():
    for (truth, prediction), share in zip(MASKS, (0.02, 0.05, 0.1, 0.2) * 2, strict=True):
        width = max(1, round(share * math.hypot(*truth.shape[1:])))
        rims = []
        for mask in (truth, prediction):
            depth = [ndimage.distance_transform_cdt(np.pad(m, 1), "chessboard") for m in mask]
            inner = np.array(depth)[:, 1:-1, 1:-1]
            rims.append((inner > 0) & (inner <= width))
        expected = (rims[0] & rims[1]).sum() / (rims[0] | rims[1]).sum()
        assert BoundaryIoU(share).score(truth, prediction, None) == pytest.approx(expected)


def objects_of(mask):
    labelled, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return [labelled == number for number in range(1, count + 1)]


def test_panoptic_quality_is_that_of_the_paper():
    for truth, prediction in MASKS:
        true, predicted = objects_of(truth), objects_of(prediction)
        ious = [(t & p).sum() / (t | p).sum() for t in true for p in predicted]
        matched = [iou for iou in ious if iou > 0.5]
        wrong = len(true) + len(predicted) - 2 * len(matched)
        expected = sum(matched) / (len(matched) + wrong / 2)
        assert PanopticQuality().score(truth, prediction, None) == pytest.approx(expected)


def test_recall_by_size_counts_objects_of_the_size():
    limits = {"small": (0, 8), "medium": (8, 12), "large": (12, None)}
    for truth, prediction in MASKS:
        for name, (above, below) in limits.items():
            hits = [
                bool((each & prediction).any())
                for each in objects_of(truth)
                if above <= (6 / math.pi * each.sum() * 6) ** (1 / 3) < (below or 1e9)
            ]
            found = SizedRecall(name, above, below).score(truth, prediction, SPACING)
            assert found == pytest.approx(np.mean(hits) if hits else math.nan, nan_ok=True)
    assert math.isnan(SizedRecall("small").score(*MASKS[0], None))
    assert SizedRecall("large", 30.0).metric.label == "recall of large objects (from 30 mm)"
    both = SizedRecall("middling", 10.0, 30.0).metric.label
    assert both == "recall of middling objects (from 10 mm, below 30 mm)"


def test_empty_masks_of_every_metric_that_is_added():
    nan = math.nan
    expected = {  # both, missed, spurious, neither
        "absolute_volume_error": (0, 1, nan, nan), "volume_similarity": (1, 0, 0, nan),
        "cldice": (1, 0, 0, nan), "boundary_iou": (1, 0, 0, nan),
        "panoptic_quality": (1, 0, 0, nan), "recall_small": (1, 0, nan, nan),
        "recall_medium": (nan,) * 4, "recall_large": (nan,) * 4,
    }  # fmt: skip
    assert expected.keys() == Detailed().added.keys()
    for name, values in expected.items():
        single = Detailed().added[name]
        scores = [single.score(*masks, SPACING) for masks in STATES.values()]
        assert scores == pytest.approx(list(values), nan_ok=True), name


def test_strict_is_what_it_was_and_detailed_scores_the_same_and_more():
    assert Strict(nsd_tolerance_mm=3.0).digest == "94e58393"
    truth, prediction = (np.stack([mask, mask[::-1]]) for mask in MASKS[0])
    rows = {}
    for profile in (Strict(), Detailed()):
        scores = profile.score_case(truth, prediction, SPACING, ["a", "b"])
        rows[profile.name] = {(where, name): value for where, name, value in scores}
    assert rows["strict"].items() <= rows["detailed"].items()
    assert len(rows["detailed"]) == len(rows["strict"]) + 2 * len(Detailed().added)


class Doubled(SingleMetric):
    """A metric of somebody else's, out of its bounds."""

    @property
    def metric(self):
        return Metric("doubled", "doubled Dice")

    def score(self, truth, prediction, spacing):
        return 2.0 if truth.any() and prediction.any() else 0.0


def test_a_metric_is_added_to_any_profile_by_itself():
    node = {"_target_": "attnseg.metrics.added.cldice.CentrelineDice"}
    own = {"_target_": "attnseg.metrics.added.boundary_iou.BoundaryIoU", "share": 0.1}
    for name, plain in PROFILES.items():
        if name == "detailed":
            continue
        target = f"{type(plain).__module__}.{type(plain).__name__}"
        config = Component.model_validate({"_target_": target, "added": {"a": node, "b": own}})
        profile = build(f"profile.{name}", config)
        assert profile.metrics == (*plain.metrics, *(m.metric for m in profile.added.values()))
        assert contracts.check_completeness(profile).problem == "", name
        table = summarised(profile, [tuple(m[None] for m in masks) for masks in MASKS[:2]],
                           names=("a",))  # fmt: skip
        values = [CentrelineDice().score(*masks, None) for masks in MASKS[:2]]
        assert table.loc["mean", "cldice"] == pytest.approx(np.mean(values))
        assert profile.digest != plain.digest
        other = build("p", Component.model_validate({"_target_": target, "added": {"a": node}}))
        assert other.digest not in (profile.digest, plain.digest)
        assert profile.describe()["added"]["cldice"] == {"class": "CentrelineDice"}
    broken = contracts.check_completeness(Strict(added={"x": Doubled()})).problem
    assert broken == "both: doubled is 2, not from 0 to 1; declare its limits"


def test_the_competition_takes_all_voxels_of_hollow_masks():
    """The distance of mle-bench's code: `directed_hausdorff` of all voxels, both ways."""
    hollow = ndimage.binary_dilation(np.pad(np.ones((2, 4, 4), bool), ((2, 2), (3, 3), (4, 4))))
    solid = hollow.copy()
    hollow[2:4, 3:7, 4:8] = False
    cases = [(solid, hollow), (hollow, solid), *MASKS[:6], (MASKS[0][0], MASKS[1][0])]
    for truth, prediction in cases:
        points = [np.argwhere(mask) / mask.shape for mask in (truth, prediction)]
        far = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
        assert UWMadison().hausdorff(truth, prediction) == pytest.approx(far / math.sqrt(3))


def test_the_competition_leaves_scans_out_that_are_empty_in_both():
    half = ORGAN.copy()
    half[1] = False
    alone = summarised(UWMadison(), [(ORGAN[None], half[None])], names=("a",))
    both = summarised(
        UWMadison(), [(ORGAN[None], half[None]), (EMPTY[None], EMPTY[None])], names=("a",)
    )
    for name in ("dice", "hausdorff", "score"):
        assert both.loc["mean", name] == alone.loc["mean", name]
    nothing = summarised(UWMadison(), [(EMPTY[None], EMPTY[None])], names=("a",))
    assert nothing.loc["mean", ["dice", "hausdorff", "score"]].isna().all()


def test_transunet_is_medpy_in_volumes_of_any_number_of_slices():
    for truth, prediction in MASKS:
        surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (truth, prediction)]
        ways = [ndimage.distance_transform_edt(~surfaces[1 - way])[surfaces[way]] for way in (0, 1)]
        expected = np.percentile(np.hstack(ways), 95)
        found = TransUNet().score(truth, prediction, None)["hd95_voxels"]
        assert found == pytest.approx(expected)


def test_nnunet_has_no_mean_over_classes_if_a_class_is_nowhere():
    absent, right = (EMPTY, EMPTY), (ORGAN, ORGAN)
    cases = [tuple(np.stack(masks) for masks in zip(right, absent, strict=True))] * 2
    table = summarised(NNUNet(), cases)
    assert table.loc["a", "dice"] == 1
    assert table.loc[["b", "mean"], "dice"].isna().all()
    assert summarised(Strict(), cases).loc["mean", "dice"] == 1


def test_boundaries_of_a_picture_are_cut_as_opencv_erodes():
    mask = np.zeros((1, 60, 80), bool)
    cv2.circle(picture := np.zeros((60, 80), np.uint8), (40, 30), 20, 1, -1)
    mask[0] = picture.astype(bool)
    assert BoundaryIoU().score(mask, mask, None) == 1
    smaller = cv2.erode(picture, np.ones((3, 3), np.uint8), iterations=2)[None].astype(bool)
    assert (
        BoundaryIoU().score(mask, smaller, None) < 0.1 < Strict().score(mask, smaller, None)["dice"]
    )


def test_the_reliability_curve_is_that_of_all_cases(tmp_path):
    rng = np.random.default_rng(0)
    pooled = Calibration(2)
    probabilities, truths = [], []
    for _ in range(3):
        probability = rng.uniform(0, 0.9, (2, 2, 16, 16))
        truth = rng.uniform(size=probability.shape) < probability**2  # overconfident
        each = Calibration(2)
        each.update(torch.from_numpy(probability), torch.from_numpy(truth))
        pooled.merge(each)
        probabilities.append(probability)
        truths.append(truth)
    write_reliability(tmp_path, pooled, ("a", "b"), "test")
    table = pd.read_csv(tmp_path / "reliability.csv")
    assert len(table) == 2 * 15
    probability, truth = np.concatenate(probabilities)[:, 1], np.concatenate(truths)[:, 1]
    for row in table[table["class"] == "b"].itertuples(index=False):
        inside = (probability >= row[1]) & (probability < row[2])
        assert row.pixels == inside.sum()
        if row.pixels:
            assert row.mean_probability == pytest.approx(probability[inside].mean())
            assert row.share == pytest.approx(truth[inside].mean())
    errors = (table["share"] - table["mean_probability"]).abs() * table["pixels"]
    ece = errors.groupby(table["class"]).sum() / table.groupby("class")["pixels"].sum()
    np.testing.assert_allclose(ece, pooled.ece())
    assert (tmp_path / "reliability.png").stat().st_size > 10_000
