"""A recipe is data that a stranger may have written."""

import json

import pytest

from attnseg.errors import CheckpointError
from attnseg.predict.recipe import Recipe
from tests.predict.made import recipe

WRONG = {
    "version": [2, None, "1"],
    "run": ["", 5, "a\nb", "x" * 300],
    "classes": [[], "organ", ["a", "a"], [1], ["a"] * 9, ["a\0"], [["a"]], {}],
    "multilabel": [1, None, "true"],
    "channels": [0, -1, 1.0, True, 10**9, "1"],
    "size": [[24], [24, 30, 1], [0, 30], [24, 10**9], 24, [24.0, 30]],
    "slices": [2, 0, 3.0],
    "stride": [0, None],
    "window": [[200, 0], [0], [0, "1"], [None, 1], 5, [0, 0], [True, 2]],
    "volumetric": [0],
    "plane": ["oblique", None, ["axial"]],
    "spacing": [[[1, 1, 1]], [[1, 1], [1, 1]], [[0, 1, 1], [1, 1, 1]], 3, [1, 2]],
    "profile": ["strict", ["strict"], [1, 2]],
    "data_digest": ["0" * 63, None, "g" * 64, 5],
    "weights_sha256": ["../" + "0" * 61],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_value_that_cannot_be(name, value):
    values = json.loads(recipe().to_json())
    with pytest.raises(CheckpointError, match=f"place: not a recipe.*{name}"):
        Recipe.from_json(json.dumps({**values, name: value}), "place")


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", "{", "[" * 100000, '{"version": 1}', '{"version": NaN}']
)
def test_text_that_is_no_recipe(text):
    with pytest.raises(CheckpointError, match="not a recipe"):
        Recipe.from_json(text)


def test_a_key_too_many_or_too_few():
    values = json.loads(recipe().to_json())
    with pytest.raises(CheckpointError, match="code is unknown"):
        Recipe.from_json(json.dumps({**values, "code": "print()"}))
    del values["stride"]
    with pytest.raises(CheckpointError, match="stride is missing"):
        Recipe.from_json(json.dumps(values))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none(number):
    text = recipe(window=(0.0, 123.0)).to_json().replace("123.0", number)
    with pytest.raises(CheckpointError, match="window"):
        Recipe.from_json(text)
