"""Batch normalisation over the batches of all processes, for training on CPUs and with FSDP.

`torch.nn.SyncBatchNorm` does the same on GPUs only, and Lightning does not use it with FSDP.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class _SumOverProcesses(torch.autograd.Function):
    """All-reduced sum, whose gradient is the all-reduced sum of the gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor) -> Tensor:
        """Return the sum."""
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        return _SumOverProcesses.forward(ctx, gradient)


class _SumWithOwnGradient(torch.autograd.Function):
    """All-reduced sum, whose gradient passes on unchanged."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor) -> Tensor:
        """Return the sum."""
        total = own.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient


def sum_with_own_gradient(own: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, with the gradient of this one's part alone.

    For a loss that all processes compute alike from such sums, and whose gradients they then add.
    """
    total: Tensor = _SumWithOwnGradient.apply(own)  # type: ignore[no-untyped-call]
    return total


def sum_over_processes(own: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, with gradients."""
    total: Tensor = _SumOverProcesses.apply(own)  # type: ignore[no-untyped-call]
    return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` that computes mean and variance over all processes while training.

    All processes must have batches of the same size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input `[B, C, H, W]`."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        world = torch.distributed.get_world_size()
        count = world * x.numel() // x.shape[1]
        mean = sum_over_processes(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = sum_over_processes(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            momentum = self.momentum or 0.1
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            self.num_batches_tracked += 1
        scaled = centred * (variance + self.eps).rsqrt()[:, None, None]
        out = scaled * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(input.dtype)


def share_batch_norm(model: nn.Module) -> None:
    """Replace every `BatchNorm2d` within a model by a `SharedBatchNorm2d` of the same state."""
    for layer in model.modules():
        for name, child in layer.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(layer, name, shared.train(child.training))
