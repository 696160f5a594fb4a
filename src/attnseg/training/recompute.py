"""Gradient checkpointing: activations of a block are computed again instead of kept.

Chen et al., 2016, arXiv 1604.06174.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: nn.Module) -> int:
    """Have every block of a model keep its inputs only, and compute the rest again for gradients.

    A block is what stands in a `ModuleList` that holds no other list. Weights and gradients are the
    same to the bit.

    Returns:
        The number of blocks.
    """
    blocks = [
        block
        for layers in model.modules()
        if isinstance(layers, nn.ModuleList) and not _holds_lists(layers)
        for block in layers
    ]
    for block in blocks:
        again = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=again)
    return len(blocks)


def _holds_lists(layers: nn.Module) -> bool:
    inner = (part for part in layers.modules() if part is not layers)
    return any(isinstance(part, nn.ModuleList) for part in inner)


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _without_statistics(block)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Let batch normalisation count a batch once, not again when it is computed again."""
    norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
    counted = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, counted, strict=True):
        for name, value in buffers.items():
            setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, counted, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value)
