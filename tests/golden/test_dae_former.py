"""DAE-Former computes and learns what the published implementation does, on the same weights."""

from functools import partial

import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.config import cost
from attnseg.models.dae_former import DAEFormer
from attnseg.models.pretrained import load_tensors
from tests.golden.recipe import Golden
from tests.golden.training_step import check_training_step

TOLERANCE = 2e-5
DEAD = 18_382_864  # parameters of the published code that no output depends on


def make(channels=3):
    return DAEFormer(
        in_channels=channels,
        num_classes=9,
        image_size=(224, 224),
        attn=partial(Attention, mixing="efficient"),
        channel_attn=partial(Attention, mixing="transpose"),
    )


@pytest.fixture(scope="module")
def certified():
    golden, model = Golden("daeformer"), make()
    report = load_tensors(model, golden.weights)
    assert report.fresh == []
    dead = sum(golden.weights[n].numel() if n in golden.weights else 0 for n in report.dropped)
    split = [n for n in report.dropped if n not in golden.weights]  # parts of split tensors
    dead += sum(512 * 512 for n in split if n.startswith("decoder_2"))
    assert dead == DEAD
    return golden, model


def test_logits_equal_the_published_ones(certified):
    golden, model = certified
    with torch.no_grad():
        difference = golden.largest_difference(model.eval()(golden.image))
    print(f"daeformer: {difference:.1e}")
    assert difference <= TOLERANCE


def test_nothing_dead_is_left():
    with torch.device("meta"):
        model = make()
    assert sum(p.numel() for p in model.parameters()) == 48_073_065 - DEAD


def test_it_costs_less_than_the_published_code():
    with torch.device("meta"):
        model = make()
    # Published: 27.64, of which 6.09 are the second evaluation of each fc1.
    assert cost.count_macs(model, (3, 224, 224)) <= 20.29e9


def test_a_training_step_has_the_published_loss_and_gradients(certified):
    golden, model = certified
    check_training_step(golden.image, model, "traingrad_daeformer.npz")
