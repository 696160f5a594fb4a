"""Linear maps of two factors, which training keeps apart and inference multiplies to one.

QVV has keys that are values, and queries X W1 W2: Gao, 2026, arXiv 2606.21848. Only the abstract
was read: as many matrices as QKV, one of which, in the space of the values, replaces that of the
keys. How the factors start, here each as any linear layer, and the place of the bias, here after
both, are ours.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class FactoredLinear(nn.Module):
    """Computes X W1 W2 + b, and holds W2 and b as the linear layer that it stands for.

    Args:
        second: the last factor and the bias; the first is as wide, and has no bias.
    """

    def __init__(self, second: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = second.in_features, second.out_features
        self.first = nn.Linear(second.in_features, second.in_features, bias=False)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        mapped: Tensor = self.second(self.first(x))
        return mapped

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """Return one linear layer with the same result; itself if a factor must be called.

        A layer with a hook, an adapter or 8-bit weights must be called.
        """
        first, second = self.first, self.second
        plain = all(
            type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
            for layer in (first, second)
        )
        if not plain:
            return self
        fused = copy.deepcopy(second)
        product = second.weight.double() @ first.weight.double()
        fused.weight.copy_(product)
        return fused


def fuse_factors(model: Network) -> Network:
    """Return a copy of a model in which factors are multiplied; the model itself if it has none.

    The copy is for inference: its state no longer fits the original.
    """
    if not any(isinstance(module, FactoredLinear) for module in model.modules()):
        return model
    fused = copy.deepcopy(model)
    for name, module in list(fused.named_modules()):
        if isinstance(module, FactoredLinear):
            parent, _, child = name.rpartition(".")
            setattr(fused.get_submodule(parent), child, module.fused())
    return fused


@torch.no_grad()
def load_fused(model: nn.Module, fused: nn.Module) -> None:
    """Give a model the weights of its copy by `fuse_factors`; first factors become the identity."""
    state = dict(fused.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, FactoredLinear) and f"{name}.weight" in state:
            for part in dict(module.second.named_parameters()):
                state[f"{name}.second.{part}"] = state.pop(f"{name}.{part}")
            state[f"{name}.first.weight"] = torch.eye(module.in_features)
    model.load_state_dict(state)
