"""What a model costs: parameters, multiply-accumulates, memory."""

import copy
import resource
import sys

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part of a model, and `total`."""
    parts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    return {**parts, "total": sum(p.numel() for p in model.parameters())}


def macs(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Count the multiply-accumulates of one forward pass, attention included.

    Counted on the meta device: on the CPU the counter sees none of fused attention's.

    Args:
        model: takes `[B, C, H, W]`.
        image: C, H, W.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        shadow(torch.zeros(1, *image, device="meta"))
    return int(counter.get_total_flops()) // 2


def peak_memory() -> int:
    """Return the largest memory so far, bytes: the GPU's allocations, else this process's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
