"""Whether a layer may compute its own way, or must leave it to PyTorch."""

import torch
from torch import Tensor


def eager_float32(x: Tensor, weight: Tensor) -> bool:
    """Return whether both are float32 on the CPU, without autocast, and no graph is recorded.

    A recorded graph is computed by other runtimes, which choose for themselves, and its batch may
    be any number: a layer that asks for sizes does so after this.
    """
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
