"""A training step of published code, recorded in a golden file, against ours."""

import numpy as np
import pytest
import torch

from attnseg.losses.ce import CrossEntropy
from attnseg.losses.dice import Dice
from attnseg.losses.dice_ce import DiceCE
from tests.golden.recipe import FOLDER


def check_training_step(image, model, name):
    """Compare losses and the norms of gradients of a model for a batch with those of a file."""
    stored = np.load(FOLDER / name)
    rng = np.random.Generator(np.random.PCG64(int(stored["target_seed"])))
    target = torch.from_numpy(rng.integers(0, 9, (2, 224, 224)))
    model.train().zero_grad()
    logits = model(image)
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
