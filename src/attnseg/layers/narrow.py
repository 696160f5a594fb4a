"""Norms and softmax that keep 16-bit tensors in 16 bits under autocast on GPUs.

Autocast widens their inputs to float32 and leaves their outputs so; the next layer narrows them
again. The kernels compute in float32 inside in either case, so that only the memory traffic is
less. The compiler fuses the casts by itself, and CPUs are left alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_narrow(x: Tensor) -> bool:
    """Return whether a tensor has 16 bits on a GPU, and nothing is being compiled."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.is_cuda and half and not torch.compiler.is_compiling()


def softmax(x: Tensor, dim: int) -> Tensor:
    """Return `x.softmax(dim)`, of the type of `x` where that is narrow."""
    if not is_narrow(x):
        return x.softmax(dim)
    with torch.autocast("cuda", enabled=False):
        return x.softmax(dim)


def narrow_once(x: Tensor) -> Tensor:
    """Return a tensor in the type of GPU autocast, for several layers that would each cast it."""
    if not x.is_cuda or torch.compiler.is_compiling() or not torch.is_autocast_enabled("cuda"):
        return x
    return x.to(torch.get_autocast_dtype("cuda"))


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that keeps narrow tensors narrow."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axes."""
        if not is_narrow(input):
            return super().forward(input)
        weight, bias = (parameter.to(input.dtype) for parameter in (self.weight, self.bias))
        with torch.autocast("cuda", enabled=False):
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that keeps narrow tensors narrow."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the groups of channels of `[B, C, ...]`."""
        if not is_narrow(input):
            return super().forward(input)
        weight, bias = (parameter.to(input.dtype) for parameter in (self.weight, self.bias))
        with torch.autocast("cuda", enabled=False):
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)
