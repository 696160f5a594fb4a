"""The demos: what they train, and what they print before and after."""

import re
from pathlib import Path

import pytest

from attnseg import cli
from attnseg.commands import demo
from tests.contracts.groups import compose


def test_the_full_demo_is_the_one_that_the_readme_shows():
    config = compose(*demo.as_training(["full=true"]))
    assert config == compose("experiment=demo")
    assert config["model"]["_target_"].endswith("SETR") and config["attn"]["sharing"] == "qk"
    assert config["dataset"]["image_size"] == [128, 128]
    assert (config["trainer"]["max_epochs"], config["dataset"]["batch_size"]) == (15, 8)


def test_the_quick_demo_has_the_same_data_split_and_test_with_other_training():
    full, quick = compose("experiment=demo"), compose(*demo.as_training(["full=false"]))
    same = {"root", "split", "phantom", "limit_cases"}
    assert {k: quick["dataset"][k] for k in same} == {k: full["dataset"][k] for k in same}
    assert quick["attn"] == full["attn"] and quick["profile"] == full["profile"]
    assert quick["trainer"]["open_test"] and not quick["dataset"]["split"]["watch_test"]
    assert quick["model"] != full["model"]
    assert demo.as_training(["attn=qkv"]) == ["experiment=demo_quick", "attn=qkv"]


@pytest.mark.parametrize("full", [False, True])
def test_announces_itself_and_names_the_picture_and_the_next_command(call, full):
    # The smallest data and no training: the words are those of a real demo.
    tiny = [
        "phantom_size=tiny",
        "trainer.max_epochs=0",
        "dataset.image_size=32",
        f"full={full}".lower(),
    ]
    answer = call(*tiny, command=cli.demo)
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[0].startswith("Four-minute demo" if full else "One-minute demo")
    assert ("full=true" in lines[0]) != full
    (picture,) = re.findall(r"(?m)^Picture of .*: (.+)$", answer.out)
    assert Path(picture).stat().st_size > 10_000
    assert (
        "Next: attnseg explain run=outputs/" in answer.out
        if full
        else ("Next: attnseg demo full=true" in answer.out)
    )
