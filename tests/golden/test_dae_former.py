"""DAE-Former computes and learns what the published implementation does, on the same weights."""

from functools import partial

import numpy as np
import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.config import cost
from attnseg.losses.ce import CrossEntropy
from attnseg.losses.dice import Dice
from attnseg.losses.dice_ce import DiceCE
from attnseg.models.dae_former import DAEFormer
from attnseg.models.pretrained import load_tensors
from tests.golden.recipe import FOLDER, Golden

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
    stored = np.load(FOLDER / "traingrad_daeformer.npz")
    rng = np.random.Generator(np.random.PCG64(int(stored["target_seed"])))
    target = torch.from_numpy(rng.integers(0, 9, (2, 224, 224)))
    model.train().zero_grad()
    logits = model(golden.image)
    assert Dice(False)(logits, target).item() == pytest.approx(float(stored["loss_dice"]), abs=1e-6)
    ce = CrossEntropy(False)(logits, target)
    assert ce.item() == pytest.approx(float(stored["loss_ce"]), abs=1e-5)
    loss = DiceCE(False)(logits, target)
    assert loss.item() == pytest.approx(float(stored["loss"]), abs=1e-5)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, norm in zip(stored["grad_names"], stored["grad_norms"], strict=True):
        ours = gradients[model.official_name(str(name))].norm().item()
        assert ours == pytest.approx(float(norm), rel=1e-4), name
    total = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    assert total == pytest.approx(float(stored["grad_norm_total"]), rel=1e-4)
