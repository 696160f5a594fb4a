"""What every loss promises: all found by glob."""

import pytest
import torch

from attnseg.config.build import build
from attnseg.config.training import parse_config
from tests.contracts.groups import compose, names

LOSSES = names("loss")


def make(name: str, overlapping: bool):
    config = parse_config(compose(f"loss={name}"))
    return build("loss", config.loss, overlapping=overlapping)


def example(overlapping: bool):
    """A target and logits that are sure of it."""
    torch.manual_seed(0)
    if overlapping:
        target = torch.randint(0, 2, (2, 3, 8, 8), dtype=torch.uint8)
        return target, 20 * (target.float() * 2 - 1)
    target = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    one_hot = torch.nn.functional.one_hot(target.long(), 3).permute(0, 3, 1, 2)
    return target, 40 * one_hot.float()


def test_every_loss_is_here():
    assert len(LOSSES) >= 5


@pytest.mark.parametrize("overlapping", [True, False], ids=["overlapping", "exclusive"])
@pytest.mark.parametrize("name", LOSSES)
def test_right_is_zero_and_wrong_is_not(name, overlapping):
    loss = make(name, overlapping)
    target, sure = example(overlapping)
    right, unsure, wrong = loss(sure, target), loss(0 * sure, target), loss(-sure, target)
    assert right.shape == ()
    assert right.item() == pytest.approx(0, abs=1e-3)
    assert right < unsure < wrong


@pytest.mark.parametrize("overlapping", [True, False], ids=["overlapping", "exclusive"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_even_without_foreground(name, overlapping):
    loss = make(name, overlapping)
    target, sure = example(overlapping)
    for logits in (sure, -sure, torch.randn_like(sure)):
        logits = logits.clone().requires_grad_()
        loss(logits, torch.zeros_like(target)).backward()
        assert logits.grad.isfinite().all()
