"""The cover reaches everything that the product has, and nobody's list has fallen behind."""

from tests.contracts.groups import names
from tests.contracts.pairs import cover, mixings, product


def test_every_model_and_attention_is_covered():
    assert len(product()) == len(names("model")) * len(names("attn")) >= 20
    assert len(set(cover())) == len(cover()) == len(names("model")) + len(names("attn")) - 1
    assert set(cover()) < set(product())
    assert {model for model, _ in cover()} == set(names("model"))
    assert {attn for _, attn in cover()} == set(names("attn"))


def test_every_mixing_is_found():
    assert {"softmax", "positional_softmax", "efficient", "transpose"} <= set(mixings())
    assert "attention" not in mixings()
