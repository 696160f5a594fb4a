"""The cover reaches everything that the product has, and nobody's list has fallen behind."""

from tests.contracts.groups import names
from tests.contracts.pairs import attending_models, attentions, bare, cover, mixings, product


def test_every_model_and_attention_is_covered():
    models, attns = attending_models(), attentions()
    assert set(names("attn")) - set(attns) == {"none"}
    assert len(product()) == len(models) * len(attns) >= 32
    assert len(set(cover())) == len(cover()) == len(models) + len(attns) - 1
    assert set(cover()) < set(product())
    assert {model for model, _ in cover()} == set(models)
    assert {attn for _, attn in cover()} == set(attns)
    assert {*models, *(model for model, _ in bare())} == set(names("model"))


def test_every_mixing_is_found():
    assert {"softmax", "positional_softmax", "efficient", "transpose"} <= set(mixings())
    assert "attention" not in mixings()
