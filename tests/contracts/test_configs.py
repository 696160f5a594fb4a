"""Every file of every group composes, passes the schema and names something that can be built."""

import pkgutil
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from attnseg import commands
from attnseg.config.build import build, locate
from attnseg.config.nodes import Component
from attnseg.config.training import parse_config
from tests.contracts.groups import FOLDER, compose, names

GROUPS = {
    "dataset": 7,
    "attn": 5,
    "model": 4,
    "tokens": 3,
    "loss": 5,
    "augment": 6,
    "optimizer": 2,
    "scheduler": 3,
    "profile": 8,
    "logger": 4,
    "trainer": 4,
    "experiment": 3,
}
CHOICES = [(group, name) for group in GROUPS for name in names(group)]


def test_no_file_is_overlooked():
    found = {group: len(names(group)) for group in GROUPS}
    assert all(found[group] >= least for group, least in GROUPS.items()), found
    on_disk = {path.relative_to(FOLDER).parts[0] for path in FOLDER.glob("*/*.yaml")}
    assert on_disk - {"search", "sweep", "workload"} == set(GROUPS)  # those have tests of their own


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=["=".join(choice) for choice in CHOICES])
def test_choice_is_valid(group, name):
    several = group in ("profile", "logger")
    config = parse_config(compose(f"{group}=[{name}]" if several else f"{group}={name}"))
    part = config.model.tokens if group == "tokens" else getattr(config, group, None)
    if group == "profile":
        profile = build("profile", part[name])
        assert profile.name == name
    if group == "logger":
        assert [build("logger", node).name for node in part.values()] == [name][name == "none" :]
    if isinstance(part, Component):
        assert callable(locate(group, part.target))


def test_every_function_that_a_command_imports_late_exists():
    folder = Path(commands.__file__).parent
    code = "\n".join(path.read_text() for path in sorted(folder.glob("*.py")))
    places = re.findall(r'deferred\(\s*"(.+?)"', code)
    assert len(places) == len(re.findall(r"(?<!def )deferred\(", code)) > 0
    assert all(callable(pkgutil.resolve_name(place)) for place in places)


def test_model_brings_its_attention_and_the_command_line_wins():
    assert compose("model=setr")["attn"]["sharing"] == "none"
    assert compose("model=setr", "attn=kv")["attn"]["sharing"] == "qk"
    assert compose("attn=kv", "model=setr")["attn"]["sharing"] == "qk"
    assert compose("experiment=demo")["attn"]["sharing"] == "qk"
    assert compose("experiment=demo", "attn=efficient")["attn"]["mixing"] == "efficient"


def test_known_bad_scans_are_excluded_by_default():
    config = OmegaConf.load(FOLDER / "dataset" / "uw_madison.yaml")
    assert set(config.exclude) == {"case7_day0", "case81_day30"}
