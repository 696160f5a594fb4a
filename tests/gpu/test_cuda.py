"""Networks on a CUDA device: the outputs and gradients of the CPU, and steps in bfloat16."""

import copy

import pytest
import torch

from tests.contracts.pairs import each_pair
from tests.contracts.test_models import SIZE, make

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """TF32 would round the convolutions to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@each_pair
def test_outputs_and_gradients_are_those_of_the_cpu(model, attn):
    here = make(model, attn).eval()  # dropout would draw other numbers on each device
    there = copy.deepcopy(here).to(DEVICE)
    image = torch.randn(2, 1, *SIZE)
    wanted, found = here(image), there(image.to(DEVICE))
    assert found.device.type == DEVICE
    assert (found.cpu() - wanted).abs().max() < 1e-4 * (1 + wanted.abs().max())
    wanted.square().mean().backward()
    found.square().mean().backward()
    for (name, ours), theirs in zip(here.named_parameters(), there.parameters(), strict=True):
        if ours.grad is None:  # an auxiliary head, which answers in training only
            continue
        difference = (theirs.grad.cpu() - ours.grad).norm()
        assert difference < 1e-3 * ours.grad.norm() + 1e-6, name


@each_pair
def test_a_step_in_bfloat16_lowers_the_loss(model, attn):
    net = make(model, attn).to(DEVICE).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    image = torch.randn(4, 1, *SIZE, device=DEVICE)
    target = torch.randint(3, (4, *SIZE), device=DEVICE)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(net(image), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert losses[-1] < losses[0]
