"""Every probe: groups that differ in the evidence alone, chance, and no way round the evidence."""

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from attnseg.attention.attention import Attention
from attnseg.attention.identity import Identity
from attnseg.layers.vit import PatchTokens, set_sine_positions
from attnseg.models.setr import SETR
from attnseg.probes.probe import SPLITS, find_probe, list_probes
from attnseg.probes.skeleton import SKELETON
from tests.contracts.groups import FOLDER

PICTURES = 240


@pytest.fixture(scope="module", params=list_probes())
def probe(request):
    return find_probe(request.param)


@pytest.fixture(scope="module")
def drawn(probe):
    return probe.pictures(PICTURES, 0, probe.scored[0] if probe.scored else None)


def groups(probe, array):
    return array.reshape(-1, probe.group, *array.shape[1:])


def network(probe, mixer):
    torch.manual_seed(0)
    classes = 1 + len(probe.classes)
    options = {"in_channels": 1, "num_classes": classes, "image_size": probe.size, "attn": mixer}
    return SETR(**options, **SKELETON.model).eval()


def test_every_probe_is_described_and_is_a_dataset(probe):
    assert probe.question.endswith("?") and probe.tests
    assert (FOLDER / "dataset" / f"probe_{probe.name}.yaml").is_file()
    assert probe.chance == 1 / probe.group and probe.ceiling == 1
    assert set(probe.scored) <= set(probe.levels)


def test_pictures_are_as_promised(probe, drawn):
    images, labels, evidence = drawn
    assert images.shape == (PICTURES, 1, *probe.size) and images.dtype == np.float32
    assert labels.shape == evidence.shape == (PICTURES, *probe.size)
    assert (labels.dtype, evidence.dtype) == (np.int64, np.bool_)
    steps = (images + 1) * 127.5
    assert np.abs(steps - steps.round()).max() < 1e-3 and abs(images).max() <= 1
    assert set(np.unique(labels)) == set(range(1 + len(probe.classes)))
    assert evidence.any((1, 2)).all()
    assert not (evidence & np.isin(labels, probe.deciding)).any()


def test_pictures_depend_on_seed_number_level_and_split_alone(probe, drawn):
    level = probe.scored[0] if probe.scored else None
    for first, again in zip(drawn, probe.pictures(7, 0, level), strict=True):
        assert np.array_equal(first[:7], again)
    others = [probe.pictures(7, 1, level), *(probe.pictures(7, 0, level, s) for s in SPLITS[1:])]
    firsts = [drawn.images[:7], *(other.images for other in others)]
    kept = [tuple(images[0, 0, :4, :4].ravel().tolist()) for images in firsts]
    assert len(set(kept)) == len(kept)
    with pytest.raises(ValueError, match="no split"):
        probe.pictures(2, 0, split="all")
    with pytest.raises(ValueError, match="no level"):
        probe.pictures(2, 0, 99)


def test_pictures_of_a_group_have_equal_histograms_and_differ_in_the_evidence_alone(probe, drawn):
    images, labels = groups(probe, drawn.images[:, 0]), groups(probe, drawn.labels)
    flat = np.sort(images.reshape(*images.shape[:2], -1), 2)
    assert (flat == flat[:, :1]).all()
    assert (images != images[:, :1]).any((2, 3))[:, 1:].all()
    # The deciding pixels are the same in all, but no two of a group share a class there.
    deciding = np.isin(labels, probe.deciding)
    assert (deciding == deciding[:, :1]).all()
    for one in range(1, probe.group):
        for other in range(one):
            assert (labels[:, one] != labels[:, other])[deciding[:, 0]].all()
    # The first picture of a group has any class.
    first = labels[:, 0][deciding[:, 0]]
    shares = [(first == k).mean() for k in probe.deciding]
    assert max(shares) < 1.45 * probe.chance


def test_whatever_is_the_same_for_a_group_scores_chance(probe, drawn):
    """The best guess by the position and by all pixels around it is no better, nor any other."""
    rng = default_rng(0)
    deciding = groups(probe, np.isin(drawn.labels, probe.deciding))
    for guess in (
        np.full(deciding.shape, probe.deciding[0]),
        rng.choice(probe.deciding, deciding[:, :1].shape).repeat(probe.group, 1),
        np.broadcast_to(rng.choice(probe.deciding, (len(deciding), 1, 1, 1)), deciding.shape),
    ):
        predicted = np.where(deciding, guess, 0).reshape(drawn.labels.shape)
        assert probe.score(predicted, drawn.labels) == pytest.approx(probe.chance, abs=1e-9)
        predicted[:, ::2] = 0  # Missed pixels cost, too.
        assert probe.score(predicted, drawn.labels) < probe.chance
    assert probe.score(drawn.labels, drawn.labels) == 1


def pixels_seen(probe, net, drawn):
    """Whether the logits at the deciding pixels of a picture depend on each pixel, `[N, H, W]`."""
    images = torch.from_numpy(drawn.images[:8]).requires_grad_()
    wanted = torch.from_numpy(np.isin(drawn.labels[:8], probe.deciding))
    (net(images).square().sum(1) * wanted).sum().backward()
    return images.grad[:, 0].numpy() != 0


def test_the_head_does_not_see_what_the_pictures_of_a_group_differ_in(probe, drawn):
    images = groups(probe, drawn.images[:, 0])
    differing = (images != images[:, :1]).any(1).repeat(probe.group, 0)[:8]
    assert not (pixels_seen(probe, network(probe, Identity), drawn) & differing).any()
    assert (pixels_seen(probe, network(probe, Attention), drawn) & differing).any()


def test_positions_begin_as_sines_of_row_and_column():
    embed = PatchTokens(1, 8, 4, (3, 2), class_token=True)
    prefix = embed.pos_embed[0, 0].clone()
    set_sine_positions(embed)
    waves = np.array([1.5, 1.5 / 8**0.5])
    for row, column in np.ndindex(3, 2):
        expected = [f(n * waves) for n in (row, column) for f in (np.sin, np.cos)]
        token = embed.pos_embed[0, 1 + 2 * row + column].detach().numpy()
        assert token == pytest.approx(np.concatenate(expected), abs=1e-6)
    assert torch.equal(embed.pos_embed[0, 0], prefix) and embed.pos_embed.requires_grad


def test_levels_and_resolution():
    reach = find_probe("reach")
    rows = [np.nonzero(reach.pictures(8, 0, at).evidence)[1].max() for at in reach.levels]
    assert rows == [56 - 4 * at + 3 for at in reach.levels]
    resolution = find_probe("resolution")
    assert resolution.pictures(2, 0, split="test").images.shape == (2, 1, 40, 40)
    assert resolution.pictures(2, 0, split="val").images.shape == (2, 1, 32, 32)
    with pytest.raises(ValueError, match="no probe 'near'; choose one of arrow, boundary"):
        find_probe("near")
