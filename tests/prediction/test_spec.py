"""An inference spec is data that a stranger may have written."""

import json
import re

import pytest

from attnseg.errors import CheckpointError
from attnseg.prediction.spec import InferenceSpec
from tests.prediction.made import spec

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


def test_values_that_cannot_be():
    values = json.loads(spec().to_json())
    accepted = []
    for name, wrong in [(name, wrong) for name, several in WRONG.items() for wrong in several]:
        try:
            InferenceSpec.from_json(json.dumps({**values, name: wrong}), "place")
            accepted.append((name, wrong))
        except CheckpointError as error:
            if not re.search(f"place: not an inference spec.*{name}", str(error)):
                accepted.append((name, wrong, str(error)))
    assert not accepted


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", "{", "[" * 100000, '{"version": 1}', '{"version": NaN}']
)
def test_text_that_is_no_spec(text):
    with pytest.raises(CheckpointError, match="not an inference spec"):
        InferenceSpec.from_json(text)


def test_a_key_too_many_or_too_few():
    values = json.loads(spec().to_json())
    with pytest.raises(CheckpointError, match="code is unknown"):
        InferenceSpec.from_json(json.dumps({**values, "code": "print()"}))
    del values["stride"]
    with pytest.raises(CheckpointError, match="stride is missing"):
        InferenceSpec.from_json(json.dumps(values))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none(number):
    text = spec(window=(0.0, 123.0)).to_json().replace("123.0", number)
    with pytest.raises(CheckpointError, match="window"):
        InferenceSpec.from_json(text)
