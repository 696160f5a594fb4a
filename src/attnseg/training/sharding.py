"""Fully sharded training (FSDP2): a model's weights are divided among the processes by blocks."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from attnseg.models.model import SegmentationModel


def list_called_blocks(model: SegmentationModel, image: tuple[int, int, int]) -> list[str]:
    """Return the names of the blocks that a training step on images `[C, H, W]` calls.

    A block is an item of a `ModuleList`; blocks within a block come before it, as `fully_shard`
    requires. The weights of a block that is never called, because its owner reads them itself,
    cannot be sharded on their own: only a call gathers them.
    """
    twin = copy.deepcopy(model).to("meta").train()
    blocks = {
        f"{name}.{key}": block
        for name, layers in twin.named_modules()
        if isinstance(layers, nn.ModuleList)
        for key, block in layers.named_children()
    }
    called: set[nn.Module] = set()
    for block in blocks.values():
        block.register_forward_pre_hook(lambda module, _: called.add(module))
    with torch.no_grad():
        twin.training_outputs(torch.zeros(2, *image, device="meta"))
    return [name for name, block in reversed(blocks.items()) if block in called]


def shard_model(model: SegmentationModel, blocks: Sequence[str], mesh: DeviceMesh) -> None:
    """Shard the named blocks of a model in place, then the rest of it."""
    for name in blocks:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "training_outputs")
