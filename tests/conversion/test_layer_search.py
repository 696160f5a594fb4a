"""Greedy search for layers: order, budget, and layers that only hurt together."""

import math

import pytest

from attnseg.conversion.layer_search import search_layers
from attnseg.errors import ConfigError

LOSSES = {0: 0.03, 2: 0.001, 5: 0.002}  # by block; numbers may have gaps


def additive(layers):
    return 0.9 - sum(LOSSES[layer] for layer in layers)


def test_the_layer_that_loses_least_is_next():
    found = search_layers(list(LOSSES), additive)
    assert [step.layers for step in found.steps] == [(), (2,), (2, 5), (2, 5, 0)]
    assert [step.dice for step in found.steps] == pytest.approx([0.9, 0.899, 0.897, 0.867])
    assert found.alone == pytest.approx({0: 0.87, 2: 0.899, 5: 0.898})


def test_every_network_is_evaluated_once():
    asked = []

    def evaluate(layers):
        asked.append(frozenset(layers))
        return additive(layers)

    search_layers(list(LOSSES), evaluate)
    assert len(asked) == len(set(asked)) == 3 * 4 / 2 + 1


def test_layers_that_hurt_together_are_told_apart():
    """By themselves, 0 and 1 cost least."""

    def evaluate(layers):
        return 0.9 - 0.001 * len(layers) - 0.001 * (2 in layers) - 0.5 * ({0, 1} <= set(layers))

    found = search_layers([0, 1, 2], evaluate)
    assert [step.layers for step in found.steps] == [(), (0,), (0, 2), (0, 2, 1)]
    assert found.choose(0.005).layers == (0, 2)


def test_the_budget_is_the_loss_against_the_original():
    found = search_layers(list(LOSSES), additive)
    chosen = [found.choose(budget).layers for budget in (0.0011, 0.0031, 0.0329, 0.04)]
    assert chosen == [(2,), (2, 5), (2, 5), (2, 5, 0)]
    message = r"blocks \[2\] loses least, 0.0010 of Dice; use budget=0.0011"
    with pytest.raises(ConfigError, match=message):
        found.choose(0.0005)


def test_a_loss_that_a_further_layer_makes_good_is_none():
    dice = {0: 0.9, 1: 0.8, 2: 0.9}
    found = search_layers([0, 1], lambda layers: dice[len(layers)])
    assert found.choose(0.005).layers == (0, 1)


def test_what_cannot_be_scored_comes_last():
    found = search_layers([0, 1], lambda layers: math.nan if 0 in layers else 0.5)
    assert [step.layers for step in found.steps] == [(), (1,), (1, 0)]
    assert found.choose(1.0).layers == (1,)
