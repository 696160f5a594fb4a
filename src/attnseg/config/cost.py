"""What a model costs: parameters, multiply-accumulates, memory."""

import contextlib
import copy
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
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
    return _count(model, image)[0]


def attention_macs(model: nn.Module, image: tuple[int, int, int]) -> tuple[int, int]:
    """Return what all attentions of a model cost: in closed form, and counted as by `macs`."""
    _, closed, counted = _count(model, image)
    return closed, counted


def attentions(model: nn.Module) -> dict[str, Any]:
    """Return the attentions of a model by name, in order: whatever states its own cost is one."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "macs") and hasattr(module, "mix")
    }


def _count(model: nn.Module, image: tuple[int, int, int]) -> tuple[int, int, int]:
    shadow = copy.deepcopy(model).to("meta").eval()
    found = attentions(shadow)
    closed = [0]

    def add(module: Any, inputs: tuple[Any, ...]) -> None:  # noqa: ANN401
        closed[0] += module.macs(inputs[0].shape[1], inputs[1])

    for module in found.values():
        module.register_forward_pre_hook(add)
    with FlopCounterMode(display=False) as counter:
        shadow(torch.zeros(1, *image, device="meta"))
    root = type(shadow).__name__
    flops = counter.get_flop_counts()
    inside = sum(sum(flops[f"{root}.{name}"].values()) for name in found)
    return int(counter.get_total_flops()) // 2, closed[0], inside // 2


def peak_memory() -> int:
    """Return the largest memory so far, bytes: the GPU's allocations, else this process's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def transient_memory(step: Callable[[], object]) -> int:
    """Return the most memory that `step` holds at once beyond what was there before, bytes."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with (
        silent_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
    ):
        step()
    results: Any = profiled.profiler
    changes = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return int(peak)


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr: the profiler reports its own start and end."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
