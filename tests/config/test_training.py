"""A configuration kept as YAML is read back as it was, by whichever library."""

import pytest
import yaml
from omegaconf import OmegaConf

from attnseg.config.training import parse_config
from tests.contracts.groups import compose, names

TRICKY = ["1e5", "1_000", "yes", "null", "0x1f", "12:30", "a: b", "é", ".5", "nan", "~", "1e-5"]


@pytest.mark.parametrize("model", names("model"))
def test_what_is_kept_is_read_back_the_same(model):
    config = parse_config(compose(f"model={model}", "dataset=phantom", "optimizer.lr=1e-5"))
    for read in (yaml.safe_load, lambda text: OmegaConf.to_container(OmegaConf.create(text))):
        plain = read(config.to_yaml())
        assert "choices" not in plain
        assert parse_config({**plain, "choices": config.choices}) == config


@pytest.mark.parametrize("text", TRICKY)
def test_text_stays_text(text):
    config = parse_config(compose("dataset=phantom"))
    kept = config.revise("paths", data=text).to_yaml()
    assert yaml.safe_load(kept)["paths"]["data"] == text
    assert OmegaConf.create(kept).paths.data == text
