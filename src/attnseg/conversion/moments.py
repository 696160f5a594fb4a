"""Mean and covariance of the tokens that the attentions of a network see."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnseg.attention.attention import Attention
from attnseg.config.cost import find_attentions


@dataclass(frozen=True)
class Moments:
    """Mean `[C]` and covariance `[C, C]` of tokens, in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> "Moments":
        """Return those of tokens `[..., C]`."""
        sums = _Sums()
        sums.add(tokens)
        return sums.moments()


@dataclass(frozen=True)
class SiteMoments:
    """Moments of the tokens that become queries, and of those that become keys."""

    queries: Moments
    keys: Moments


class _Sums:
    def __init__(self) -> None:
        self.count, self.total, self.products = 0, torch.zeros(0), torch.zeros(0)

    def add(self, tokens: Tensor) -> None:
        flat = tokens.detach().flatten(0, -2).double()
        if not self.count:
            self.total = flat.new_zeros(flat.shape[1])
            self.products = flat.new_zeros(flat.shape[1], flat.shape[1])
        self.count += len(flat)
        self.total += flat.sum(0)
        self.products += flat.mT @ flat

    def moments(self) -> Moments:
        mean = self.total / self.count
        return Moments(mean, self.products / self.count - torch.outer(mean, mean))


@torch.no_grad()
def measure_moments(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, SiteMoments]:
    """Return the moments of the tokens at each attention of a model, by the attention's name.

    Args:
        model: in evaluation mode; left unchanged.
        batches: images `[B, C, H, W]`.
    """
    sums: dict[str, tuple[_Sums, _Sums]] = {}
    given: dict[str, dict[str, list[Tensor]]] = {}
    handles = []

    def note(name: str, part: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        given[name].setdefault(part, []).append(args[0])

    def add(name: str, mixer: Attention, args: object, out: object) -> None:
        seen, given[name] = given[name], {}
        queries, keys = seen[mixer.reads["q"]], seen[mixer.reads["k"]]
        sums[name][0].add(queries[0])
        sums[name][1].add(keys[-1])  # A projection that both use is called for the queries first.

    for name, mixer in find_attentions(model).items():
        if isinstance(mixer, Attention):
            sums[name], given[name] = (_Sums(), _Sums()), {}
            handles.append(mixer.register_forward_hook(partial(add, name)))
            for part, projection in mixer.project.items():
                handles.append(projection.register_forward_pre_hook(partial(note, name, part)))
    try:
        for images in batches:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: SiteMoments(*(each.moments() for each in both)) for name, both in sums.items()}
