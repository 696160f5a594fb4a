"""The cover reaches everything that the product has, and nobody's list has fallen behind."""

from tests.contracts.groups import names
from tests.contracts.pairs import (
    attending_models,
    attentions,
    bare,
    cover,
    light_cover,
    mixings,
    product,
)


def test_every_model_and_attention_is_covered():
    models, attns = attending_models(), attentions()
    assert set(names("attn")) - set(attns) == {"none"}
    assert len(product()) == len(models) * len(attns) >= 32
    assert len(set(cover())) == len(cover()) == len(models) + len(attns) - 1
    assert set(cover()) | set(light_cover()) < set(product())
    for pairs in (cover(), light_cover()):
        assert {model for model, _ in pairs} == set(models)
        assert {attn for _, attn in pairs} == set(attns)
    assert {*models, *(model for model, _ in bare())} == set(names("model"))


def test_every_mixing_is_found():
    assert {"softmax", "positional_softmax", "efficient", "transpose"} <= set(mixings())
    assert "attention" not in mixings()
