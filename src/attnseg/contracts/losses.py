"""Promises of every loss, for exclusive and for overlapping classes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnseg.contracts.networks import Outcome

SURE = 20.0  # logits of a network that is certain
ZERO = 1e-3  # largest loss of a certain and right answer


def make_example(overlapping: bool) -> tuple[Tensor, Tensor]:
    """Return a target and logits `[2, 3, 8, 8]` that are sure of it."""
    generator = torch.Generator().manual_seed(0)
    if overlapping:
        target = torch.randint(0, 2, (2, 3, 8, 8), dtype=torch.uint8, generator=generator)
        return target, SURE * (target.float() * 2 - 1)
    target = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8, generator=generator)
    one_hot = nn.functional.one_hot(target.long(), 3).permute(0, 3, 1, 2)
    return target, 2 * SURE * one_hot.float()


def check_ranking(loss: nn.Module, overlapping: bool) -> Outcome:
    """The right answer costs nothing, doubt more, and the wrong answer most."""
    target, sure = make_example(overlapping)
    values = [loss(logits, target) for logits in (sure, 0 * sure, -sure)]
    if any(value.shape != () for value in values):
        return Outcome("", f"a loss of shape {list(values[0].shape)}, not a number")
    right, unsure, wrong = map(float, values)
    measured = f"{right:.3f} < {unsure:.2f} < {wrong:.2f}"
    if abs(right) > ZERO:
        return Outcome(measured, f"a right and certain answer costs {right:.2g}, not 0")
    kept = right < unsure < wrong
    return Outcome(measured, "" if kept else "right, unsure and wrong are not in this order")


def check_finiteness(loss: nn.Module, overlapping: bool) -> Outcome:
    """Gradients are finite even where there is no foreground."""
    target, sure = make_example(overlapping)
    unsure = torch.randn(sure.shape, generator=torch.Generator().manual_seed(0))
    for logits in (sure, -sure, unsure):
        leaf = logits.clone().requires_grad_()
        loss(leaf, torch.zeros_like(target)).backward()
        if leaf.grad is None or not leaf.grad.isfinite().all():
            return Outcome("", "without foreground the gradient is not finite")
    return Outcome("finite")


CONTRACTS: dict[str, Callable[[nn.Module, bool], Outcome]] = {
    "order": check_ranking,
    "finiteness": check_finiteness,
}
