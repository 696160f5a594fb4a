"""Votes, mirrored passes, tiles and what is cleaned away, by numbers a person can check."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attnseg.errors import CheckpointError, ConfigError
from attnseg.prediction.folder import check_specs_agree
from attnseg.prediction.masks import resize_logits, to_probabilities
from attnseg.prediction.postprocess import Rule, clean_mask
from attnseg.prediction.scan import make_scan
from attnseg.prediction.segment import Member, Segmenter, tile_starts, tile_weights
from attnseg.runs.reopen import TorchNetwork
from tests.prediction.made import WINDOW, Constant, Threshold, organ, spec


def scan(shape=(2, 12, 14), spacing=None):
    image = np.ascontiguousarray(organ(shape)[..., None])
    return make_scan(image, spacing, None, WINDOW)


def segment(networks, shape=(2, 12, 14), maps=True, how=None, **values):
    made = spec(**{"size": shape[1:], **values})
    members = [Member(network, made.view) for network in networks]
    return Segmenter(made.labels, members, **(how or {}))(scan(shape), maps, maps)


@pytest.mark.parametrize("size", [(30, 41), (7, 90), (20, 20), (60, 60)])
def test_logits_are_resized_as_pytorch_does(size):
    logits = np.random.default_rng(0).normal(size=(2, 3, 20, 20)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(logits), size, mode="bilinear").numpy()
    assert np.abs(resize_logits(logits, size) - expected).max() < 1e-4


def test_probabilities_are_those_of_pytorch():
    logits = np.random.default_rng(0).normal(size=(2, 4, 20, 20)).astype(np.float32)
    for overlapping, function in ((True, torch.sigmoid), (False, lambda x: x.softmax(1))):
        found = to_probabilities(logits, overlapping)
        assert found.dtype == np.float32
        assert np.abs(found - function(torch.from_numpy(logits)).numpy()).max() < 1e-6
    extreme = np.array([-1e4, 0, 1e4], np.float32).reshape(1, 3, 1, 1)
    assert np.isfinite(to_probabilities(extreme, True)).all()


def test_runs_vote_by_their_mean_probability():
    """0.8, 0.8 and 0.01 are 0.537 on average, although the mean of the logits is below 0."""
    result = segment([Constant(0.8), Constant(0.8), Constant(0.01)])
    assert np.allclose(result.probabilities, 1.61 / 3, atol=1e-6)
    assert result.masks.all()
    below = segment([Constant(0.9), Constant(0.05)])
    assert np.allclose(below.probabilities, 0.475, atol=1e-6)
    assert not below.masks.any()


def test_classes_that_exclude_each_other_vote_as_well():
    first = Constant(0.5, 0.6)  # odds of 1 and 1.5: probabilities 0.4 and 0.6
    second = Constant(0.9, 0.5)  # odds of 9 and 1: 0.9 and 0.1
    result = segment([first, second], multilabel=False)
    assert np.allclose(result.probabilities, 0.35, atol=1e-6)
    assert not result.masks.any()


def test_entropy_is_that_of_the_mean():
    assert np.allclose(segment([Constant(0.9), Constant(0.1)]).uncertainty, 1, atol=1e-6)
    assert np.allclose(segment([Constant(0.25)]).uncertainty, 0.811278, atol=1e-5)
    sure = segment([Constant(0.5, 1e-6)], multilabel=False)
    assert sure.uncertainty.max() < 1e-4
    even = segment([Constant(0.5, 0.5, 0.5)], multilabel=False, classes=("a", "b"))
    assert np.allclose(even.uncertainty, 1, atol=1e-6)
    two = segment([Constant(0.5, 0.999999)], classes=("a", "b"))
    assert np.allclose(two.uncertainty, 1, atol=1e-6)  # of the class that is most undecided


def test_what_is_alone_decides_by_its_logits_whatever_maps_are_asked_for():
    for multilabel in (True, False):
        bare = segment([Threshold(spec(multilabel=multilabel))], maps=False, multilabel=multilabel)
        full = segment([Threshold(spec(multilabel=multilabel))], multilabel=multilabel)
        assert bare.probabilities is None
        assert np.array_equal(bare.masks, full.masks)
        assert np.array_equal(bare.masks[0], organ((2, 12, 14)) > 100)


class Ramp:
    """Answers with the column's number, whatever it is shown."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        columns = np.arange(images.shape[3], dtype=np.float32)
        return np.broadcast_to(columns, images.shape).copy()


def test_mirrored_passes_are_mirrored_back():
    def p(x):
        return 1 / (1 + np.exp(-x))

    columns = np.arange(14)
    ramp = Ramp()
    result = segment([ramp], how={"flips": ["h"]})
    assert ramp.calls == 2
    expected = (p(columns) + p(columns[::-1])) / 2
    assert np.allclose(result.probabilities[0, 0, 0], expected, atol=1e-6)
    ramp = Ramp()
    result = segment([ramp], how={"flips": ["h", "v"]})
    assert ramp.calls == 4
    assert np.allclose(result.probabilities[0, 0, 0], expected, atol=1e-6)
    upright = segment([Threshold(spec())], how={"flips": ["v", "h"]})
    assert np.array_equal(upright.masks[0], organ((2, 12, 14)) > 100)


@pytest.mark.parametrize(
    ("length", "size", "overlap", "expected"),
    [
        (32, 32, 0.5, [0]),
        (33, 32, 0.5, [0, 1]),
        (64, 32, 0.5, [0, 16, 32]),
        (65, 32, 0.5, [0, 11, 22, 33]),
        (64, 32, 0.0, [0, 32]),
        (70, 32, 0.0, [0, 19, 38]),
        (40, 4, 0.99, list(range(37))),
    ],
)
def test_tiles_cover_a_length_evenly(length, size, overlap, expected):
    assert tile_starts(length, size, overlap) == expected


def test_a_tile_weighs_most_in_its_middle():
    weights = tile_weights(spec(size=(16, 32)).view)
    assert weights.shape == (16, 32)
    assert 0.95 < weights.max() <= 1
    assert weights.min() > 0
    assert np.allclose(weights, weights[::-1, ::-1])
    # Half a side is four standard deviations.
    assert weights[7, 0] / weights[7, 15] == pytest.approx(
        np.exp(-(15.5**2 - 0.5**2) / (2 * 4**2)), rel=1e-4
    )


def test_tiles_see_a_large_image_as_it_is(shape=(2, 50, 41)):
    network = Threshold(spec())
    tiled = segment([network], shape, how={"tiles": 0.5}, size=(16, 24))
    assert {images.shape[2:] for images in network.seen} == {(16, 24)}
    assert max(len(images) for images in network.seen) <= 8
    assert np.array_equal(tiled.masks[0], organ(shape) > 100)
    resized = segment([Threshold(spec())], shape, size=(16, 24))
    assert not np.array_equal(resized.masks[0], organ(shape) > 100)


def test_tiles_of_an_image_that_is_narrower_than_the_network_or_smaller():
    narrow = segment([Threshold(spec())], (1, 50, 9), how={"tiles": 0.25}, size=(16, 24))
    assert np.array_equal(narrow.masks[0], organ((1, 50, 9)) > 100)
    network = Threshold(spec())
    segment([network], (1, 12, 14), how={"tiles": 0.5}, size=(24, 28))
    assert len(network.seen) == 1  # resized as ever


def test_tiles_flips_and_several_runs_at_once():
    how = {"tiles": 0.3, "flips": ["h", "v"], "batch_size": 3}
    result = segment([Threshold(spec()), Threshold(spec())], (2, 50, 41), how=how, size=(16, 24))
    assert np.array_equal(result.masks[0], organ((2, 50, 41)) > 100)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_answers_with_nan(value):
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        segment([lambda images: images * np.float32(value)])


def blobs():
    """Components of 8, 3, 3 (joined at a corner: 6) and 1 voxels."""
    mask = np.zeros((4, 9, 9), bool)
    mask[:2, :2, :2] = True
    mask[0, 5, 4:7] = True
    mask[1, 6, 7] = mask[1, 6, 8] = mask[1, 7, 8] = True
    mask[3, 8, 0] = True
    return mask


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (Rule(), 15),
        (Rule(largest=True), 8),
        (Rule(min_pixels=2), 14),
        (Rule(min_pixels=7), 8),
        (Rule(min_pixels=8), 8),
        (Rule(min_pixels=9), 0),
        (Rule(largest=True, min_pixels=9), 0),
        (Rule(min_ml=0.12), 14),  # two voxels of 0.06 ml
        (Rule(min_ml=0.36), 14),  # six of them, to the bit
        (Rule(min_ml=0.37), 8),
        (Rule(min_ml=0.01, min_pixels=7), 8),
    ],
)
def test_components_go_by_size(rule, left):
    mask = blobs()
    assert clean_mask(mask, rule, (5.0, 4.0, 3.0)).sum() == left
    assert mask.sum() == 15
    assert (clean_mask(mask, rule, (5.0, 4.0, 3.0)) <= mask).all()


def test_a_volume_needs_the_size_of_a_voxel():
    with pytest.raises(ValueError, match="size of a voxel"):
        clean_mask(blobs(), Rule(min_ml=1), None)
    assert clean_mask(blobs(), Rule(min_pixels=2), None).sum() == 14


def test_runs_that_do_not_fit_are_both_named():
    other = spec(run="fedcba9876", classes=("liver", "spleen"))
    with pytest.raises(ConfigError, match=r"0123456789 .*organ.* fedcba9876 .*liver,spleen"):
        check_specs_agree([spec(), spec(), other])
    assert check_specs_agree([spec(), spec(size=(8, 8), slices=3)]).size == (24, 30)


def test_a_scan_unlike_the_training_is_told():
    image = np.zeros((3, 5, 5, 1), np.int16)
    trained = spec(spacing=((3.0, 1.0, 1.0), (5.0, 1.5, 1.5)))
    constant, spacing, intensities = make_scan(
        image, (3.0, 4.0, 4.0), None, WINDOW
    ).differences_from_training(trained)
    assert constant == "every voxel has the same intensity"
    assert spacing.startswith("voxels of 3x4x4 mm, in training 3x1x1 to 5x1.5x1.5 mm")
    assert intensities.startswith("hardly any intensity of the middle slice is between 0 and 200")
    image[0, 0, 0] = 1
    assert (
        make_scan(image + 50, (9.0, 0.6, 2.9), None, WINDOW).differences_from_training(trained)
        == []
    )


def test_percentiles_are_those_of_a_prepared_case():
    image = organ((3, 20, 20))[..., None]
    made = make_scan(image, None, None, None)
    assert (made.low, made.high) == tuple((float(np.percentile(image, q)),) for q in (0.5, 99.5))
    flat = make_scan(np.full((1, 4, 4, 1), 7), None, None, None)
    assert (flat.low, flat.high) == ((7.0,), (8.0,))


@pytest.mark.parametrize("multilabel", [True, False])
def test_a_gpu_that_decides_by_itself_decides_alike(multilabel):
    """What runs on a GPU, run on the CPU; the scan is larger than the network's input."""
    torch.manual_seed(0)
    made = spec(size=(12, 14), multilabel=multilabel)
    channels = made.labels.channels
    networks = [
        TorchNetwork(torch.nn.Conv2d(made.in_channels, channels, 3, padding=1)) for _ in "ab"
    ]
    networks[1].model = networks[0].model
    assert networks[0].decide is None
    networks[1].decide = networks[1].decide_on_device
    results, logits = [], []
    for network in networks:
        segmenter = Segmenter(made.labels, [Member(network, made.view)], batch_size=2)
        seen = []
        results.append(
            segmenter(scan((3, 30, 41)), on_logits=lambda at, x, seen=seen: seen.append(x))
        )
        logits.append(np.concatenate(seen))
    assert np.array_equal(*logits)
    assert 0 < results[0].masks.mean() < 1
    assert (results[0].masks != results[1].masks).mean() < 1e-3  # resized by OpenCV and by PyTorch
    torch.nn.init.constant_(networks[1].model.bias, torch.inf)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        segmenter(scan((3, 30, 41)))
