"""Gradient checkpointing: blocks recompute their activations in the backward pass.

Chen et al., 2016, arXiv 1604.06174. It saves memory, costs time and changes no weight or gradient.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # also of SyncBatchNorm
from torch.utils.checkpoint import checkpoint


def list_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model: the items of each `ModuleList` that contains no other list."""
    return [
        block
        for layers in model.modules()
        if isinstance(layers, nn.ModuleList)
        and not any(isinstance(m, nn.ModuleList) for m in layers.modules() if m is not layers)
        for block in layers
    ]


def recompute_blocks(model: nn.Module, compiled: bool = False) -> int:
    """Make every block of a model keep its inputs only; return the number of blocks.

    If the model will be `compiled`, the compiler recomputes, and updates running statistics once by
    itself.
    """
    blocks = list_blocks(model)
    for block in blocks:
        recomputed = partial(checkpoint, block.forward, use_reentrant=False)
        if not compiled:
            contexts = partial(_forward_and_recompute_contexts, block)
            recomputed = partial(recomputed, context_fn=contexts)
        block.forward = recomputed
    return len(blocks)


def _forward_and_recompute_contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _frozen_batch_statistics(block)


@contextmanager
def _frozen_batch_statistics(block: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged: the forward pass has already counted this batch."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    originals = [(norm, name, value) for norm in norms for name, value in norm.named_buffers()]
    for norm, name, value in originals:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in originals:
            setattr(norm, name, value)
