"""Counts a model's parameters and multiply-accumulates (MACs) and measures its memory."""

import contextlib
import copy
import inspect
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from attnseg.layers.factored import fuse_factors
from attnseg.layers.tokens import Grid, TokenMixer


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each child module of a model, and `total`."""
    children = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    return {**children, "total": sum(p.numel() for p in model.parameters())}


def count_macs(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Return the multiply-accumulates of one forward pass, attention included.

    They are counted on the meta device: on a CPU, PyTorch's counter misses fused attention.
    `image` is C, H, W of the input.
    """
    return count_all_macs(model, image)[0]


def count_attention_macs(model: nn.Module, image: tuple[int, int, int]) -> tuple[int, int]:
    """Return the MACs of the attention layers, by each one's formula and by PyTorch's counter."""
    return count_all_macs(model, image)[1:]


def find_attentions(model: nn.Module) -> dict[str, TokenMixer]:
    """Return a model's attentions, and what stands in their place, by name and in order.

    An attention within another one is a part of it.
    """
    mixers: dict[str, TokenMixer] = {}
    for name, module in model.named_modules():
        if isinstance(module, TokenMixer) and not any(name.startswith(f"{o}.") for o in mixers):
            mixers[name] = module
    return mixers


def count_attention_parameters(model: nn.Module) -> int:
    """Return the number of parameters of the attentions, or of what stands in their place."""
    weights = {p for mixer in find_attentions(model).values() for p in mixer.parameters()}
    return sum(p.numel() for p in weights)


def bind_tokens(
    mixer: TokenMixer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Grid, Tensor | None, Grid | None]:
    """Return tokens, grid, context and its grid of a call of a mixer; see `TokenMixer.forward`.

    Tokens that are their own context have none.
    """
    given = inspect.signature(mixer.forward).bind(*args, **kwargs).arguments
    context = given.get("context")
    if context is None or context is given["x"]:
        return given["x"], given["grid"], None, None
    return given["x"], given["grid"], context, given.get("context_grid")


def count_all_macs(model: nn.Module, image: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return all MACs as counted, then those of the attentions by formula and as counted.

    They are those of inference, for which factors of a matrix are multiplied beforehand.
    """
    meta_model = fuse_factors(copy.deepcopy(model).to("meta").eval())
    attentions = find_attentions(meta_model)
    formula = 0

    def add(mixer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        nonlocal formula
        x, grid, context, context_grid = bind_tokens(mixer, args, kwargs)
        tokens = None if context is None else context.shape[1]
        formula += mixer.macs(x.shape[1], grid, tokens, context_grid)

    for module in attentions.values():
        module.register_forward_pre_hook(add, with_kwargs=True)
    with FlopCounterMode(display=False) as counter:
        meta_model(torch.zeros(1, *image, device="meta"))
    root = type(meta_model).__name__
    flops = counter.get_flop_counts()
    inside = sum(sum(flops.get(f"{root}.{name}", {}).values()) for name in attentions)
    return int(counter.get_total_flops()) // 2, formula, inside // 2


def peak_memory() -> int:
    """Return the peak memory so far in bytes: of the GPU's allocations, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def transient_memory(step: Callable[[], object], on_gpu: bool) -> int:
    """Return the peak of the memory that `step` allocates, in bytes.

    Args:
        step: called once.
        on_gpu: whether it computes on a GPU, whose allocations are counted then.
    """
    if on_gpu:
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
    held = peak = 0  # Events are allocations (positive) and releases (negative).
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return int(peak)


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what native code prints to stderr: the profiler announces its start and stop."""
    original, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(null)
