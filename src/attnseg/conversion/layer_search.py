"""Greedy search for the layers of a network that can be converted at a small loss of Dice."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnseg.errors import ConfigError


@dataclass(frozen=True)
class Step:
    """A network between the original and the one in which every layer is converted.

    Attributes:
        layers: numbers of the converted blocks, in the order in which they were converted.
        dice: its validation Dice.
    """

    layers: tuple[int, ...]
    dice: float


@dataclass(frozen=True)
class LayerSearch:
    """The steps of a search, from no layer to all, and what each layer does by itself.

    Attributes:
        steps: the original network first; each has one layer more than the one before.
        alone: validation Dice of the network in which only that layer is converted, by its number.
    """

    steps: tuple[Step, ...]
    alone: dict[int, float]

    def choose(self, budget: float) -> Step:
        """Return the last step that loses at most the budget of Dice against the original.

        Raises:
            ConfigError: no step does.
        """
        first, *others = self.steps
        allowed = [step for step in others if first.dice - step.dice <= budget]
        if not allowed:
            best = max(others, key=lambda step: step.dice)
            loss = first.dice - best.dice
            raise ConfigError(
                f"convert.budget: converting blocks {list(best.layers)} loses least, {loss:.4f} of "
                f"Dice; use budget={loss + 1e-4:.4f}"
            )
        return allowed[-1]


def search_layers(
    layers: Sequence[int], evaluate: Callable[[tuple[int, ...]], float]
) -> LayerSearch:
    """Convert one layer after another, each time the one that leaves the highest Dice.

    With n layers, n (n + 1) / 2 + 1 networks are evaluated. Of equal layers, the first is taken.

    Args:
        layers: numbers of the blocks that can be converted.
        evaluate: returns the validation Dice of the network with these blocks converted; NaN, where
            nothing could be scored, is the lowest.
    """
    steps, alone = [Step((), evaluate(()))], dict[int, float]()
    while left := [layer for layer in layers if layer not in steps[-1].layers]:
        found = {layer: evaluate((*steps[-1].layers, layer)) for layer in left}
        alone = alone or found
        best = max(left, key=lambda layer: -math.inf if math.isnan(found[layer]) else found[layer])
        steps.append(Step((*steps[-1].layers, best), found[best]))
    return LayerSearch(tuple(steps), alone)
