"""The situs phantom: the far end of the picture decides, and nothing else can."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from attnseg.attention.attention import Attention
from attnseg.attention.identity import Identity
from attnseg.attention.pool import Pool
from attnseg.config.training import parse_config
from attnseg.models.setr import SETR
from attnseg.phantoms.situs import SITUS_PRESETS, Trunk, make_pair, make_situs
from attnseg.preparation.datasets import load_dataset, open_reader
from tests.contracts.groups import compose
from tests.limits import at_most

PATIENTS = range(60)
SOLITUS, INVERSUS = 1, 2
SIDE = 128


@pytest.fixture(scope="module")
def pairs():
    return [make_pair(0, patient, SIDE) for patient in PATIENTS]


def test_a_pair_differs_in_the_mirrored_upper_half_alone(pairs):
    for (a, _), (b, _) in pairs:
        assert np.array_equal(a[SIDE // 2 :], b[SIDE // 2 :])
        assert np.array_equal(a[: SIDE // 2], b[: SIDE // 2, ::-1])
        assert not np.array_equal(a, b)
        assert np.array_equal(*(np.bincount(picture.ravel(), minlength=256) for picture in (a, b)))


def test_the_side_of_the_liver_is_the_class_of_both_hips(pairs):
    for pair in pairs:
        for picture, label in pair:
            upper, half = picture[: SIDE // 4].astype(float), SIDE // 2
            inversus = upper[:, half:].mean() > upper[:, :half].mean()  # the liver is the brightest
            hips = label[:, :half] > 0, label[:, half:] > 0
            assert np.unique(label).tolist() == [0, INVERSUS if inversus else SOLITUS]
            assert np.array_equal(hips[0], hips[1][:, ::-1])  # equal and symmetric
            assert hips[0].sum() > 150
        assert {label.max() for _, label in pair} == {SOLITUS, INVERSUS}
    # The mirrored picture is of either situs: whether one could see it or not, it tells nothing.
    assert 15 < sum(b.max() == SOLITUS for _, (_, b) in pairs) < 45


def _features(pair, rows):
    for picture, label in pair:
        histogram = np.bincount(picture.ravel() // 4, minlength=64) / picture.size
        region = picture[rows].reshape(-1, 4, SIDE // 4, 4).mean((1, 3)) / 255
        answer = 1.0 if label.max() == SOLITUS else -1.0
        yield np.concatenate([[1.0], histogram, region.ravel()]), answer


@pytest.mark.parametrize(("rows", "lowest", "highest"), [((64, 128), 0.5, 0.5), ((0, 64), 0.99, 1)])
def test_a_linear_classifier_needs_the_upper_half(pairs, rows, lowest, highest):
    """Ridge regression on the histogram and on a half of the picture, in blocks of 4 x 4 pixels."""
    samples = [sample for pair in pairs for sample in _features(pair, slice(*rows))]
    x, answers = (np.array(column) for column in zip(*samples, strict=True))
    train = x[:80]
    weights = train.T @ np.linalg.solve(train @ train.T + 0.01 * np.eye(80), answers[:80])
    assert lowest <= (np.sign(x[80:] @ weights) == answers[80:]).mean() <= highest


@pytest.mark.parametrize(
    ("share", "expected"), [(1.0, 1 / 4), (0.5, 1 / 3), ("by patient", 1 / 3), ("any", None)]
)
def test_whatever_predicts_the_same_for_both_pictures_scores_a_third_at_most(
    pairs, share, expected
):
    """`share` of the hips is predicted as solitus; profile strict counts a wrong class as 0."""
    rng = default_rng(0)
    scores = []
    for number, pair in enumerate(pairs):
        limit = {"by patient": number % 2, "any": rng.uniform(0, 1, SIDE)}.get(share, share)
        guess = np.where(rng.random((SIDE, SIDE)) < limit, SOLITUS, INVERSUS)
        for _, label in pair:
            predicted = np.where(label, guess, 0)
            totals = [(predicted == c).sum() + (label == c).sum() for c in (SOLITUS, INVERSUS)]
            both = [((predicted == c) & (label == c)).sum() for c in (SOLITUS, INVERSUS)]
            scores.append([2 * x / n if n else np.nan for x, n in zip(both, totals, strict=True)])
    mean = np.nanmean(scores, 0).mean()
    assert mean <= 1 / 3 + 0.002  # shares of whole pixels
    assert expected is None or mean == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("mixer", "head", "reaches"),
    [
        (Identity, "naive", False),
        (Identity, "pup", False),
        (Identity, "mla", False),
        (Pool, "pup", False),
        (Attention, "pup", True),
    ],
)
def test_convolutions_do_not_reach_from_the_hips_to_the_liver(pairs, mixer, head, reaches):
    hips = min(np.nonzero(label)[0].min() for pair in pairs for _, label in pair)
    trunks = [Trunk(default_rng(patient), SIDE, 1) for patient in PATIENTS]
    rows = [(np.minimum(t.liver, t.stomach)[::-1, 0] < 0).any(1) for t in trunks]
    liver = np.nonzero(np.any(rows, 0))[0].max()
    assert hips - liver > 60
    network = SETR(
        in_channels=1, num_classes=3, image_size=(SIDE, SIDE), attn=mixer, size="tiny", head=head
    ).eval()
    picture = torch.rand(1, 1, SIDE, SIDE, requires_grad=True)
    network(picture)[0, :, hips:].square().sum().backward()
    assert bool(picture.grad[0, 0, : liver + 1].any()) == reaches
    assert picture.grad[0, 0, hips:].any()


def test_training_gets_whole_patients_by_role(tmp_path):
    node = compose("dataset=situs", "phantom_size=tiny", f"paths.data={tmp_path}")
    config = parse_config(node)
    data = load_dataset(config, open_reader(config))
    assert data.reader.classes == ("solitus", "inversus")
    roles = defaultdict(set)
    for line in data.split.splitlines()[1:]:
        patient, case, role = line.split(",")[:3]
        assert case in (f"{patient}_a", f"{patient}_b")
        roles[patient].add((case, role))
    assert len(roles) == 12
    assert all(len(cases) == 2 and len({r for _, r in cases}) == 1 for cases in roles.values())
    counts = Counter(role for cases in roles.values() for _, role in cases)
    assert counts["train"] > counts["test"] >= counts["val"] >= 2


def test_presets_are_made_in_time(tmp_path):
    with at_most(seconds=2):
        make_situs(tmp_path / "tiny", "tiny")
        make_pair(0, 0, SITUS_PRESETS["demo"].side)
    assert len(list((tmp_path / "tiny" / "imagesTr").iterdir())) == 24
