"""Paths and patterns are taken as they are typed, whatever Hydra's grammar makes of them."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from attnseg.api import to_overrides
from attnseg.cli.hydra_app import compose_raw, to_hydra
from attnseg.cli.literal_text import quote_text_options
from attnseg.commands import train
from attnseg.errors import ConfigError

NAMES = (
    "数据", "a=b", "a#b", "a (copy)", "~x", "x ~y", "[x]", "a[1]", "{a}", "a{b}c", "a,b", "1_000",
    "2024", "1e5", "true", "a b", " leads", "trails ", "it's", 'say "so"', "both ' and \"", "a&b",
    "a;b", "a!b", "a|b", "a$b", "${x}", "a${seed}b", "back\\slash", "ends\\", "quote\\'s", "é",
    "e\u0301", "Größe", "أشعة", "日本 #1=[2].v3", "a:b", "a@b", "a+b", "a*b?", "-x", "x.", "...x",
    "%20", "a^b", "<a>", "a`b", "nullx", "key=value=more", "C=D E=F", "(", ")", "]", "a]b[",
    "\u200bzero", "emoji 🫀", "a\\,b", "seed=1 seed=2",
)  # fmt: skip


def understand(argument):
    """Return the value that Hydra and OmegaConf find in an argument."""
    override = OverridesParser.create().parse_override(argument)
    value = OmegaConf.create({"seed": 0, "value": override.value()})["value"]
    return OmegaConf.to_container(value) if OmegaConf.is_list(value) else value


def test_paths_that_exist_are_taken_as_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    misread = {}
    for name in NAMES:
        (tmp_path / name).mkdir()
        given = [f"pred={name}", f"dataset.root={tmp_path / name}", f"outputs={name}/."]
        values = [understand(argument) for argument in quote_text_options(given)]
        if values != [name, str(tmp_path / name), f"{name}/."]:
            misread[name] = values
    assert misread == {}


def test_paths_that_do_not_exist_yet_are_taken_as_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    misread = []
    for name in set(NAMES) - {"[x]", "{a}", "${x}", "a${seed}b", "a\\,b"}:  # they could be meant so
        for path in (name, f"/nowhere/{name}"):
            if understand(quote_text_options([f"output={path}"])[0]) != path:
                misread.append(path)
    assert misread == []


def test_paths_from_python(tmp_path):
    misread = []
    for name in NAMES:
        (tmp_path / name).mkdir()
        (given,) = to_overrides({"dataset.root": tmp_path / name})
        if understand(quote_text_options([given])[0]) != str(tmp_path / name):
            misread.append(name)
    assert misread == []


@pytest.mark.parametrize("name", ["数据 (1)", "[x]'s ~#=", "2024"])
def test_commands_take_such_paths(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    arguments = ["dataset=nnunet", f"dataset.root={name}", f"paths.outputs={tmp_path}/{name}"]
    options = compose_raw(train.COMMAND, to_hydra(train.COMMAND, arguments))
    assert options["dataset"]["root"] == name
    assert options["paths"]["outputs"] == f"{tmp_path}/{name}"


@pytest.mark.parametrize(
    "pattern", [r"^(p\d+)_", r"(case\d{3})[ab]?", "(a|b)=", "([^_]+)_", "(数+)", r"(\w+)\.\w"]
)
def test_patterns_are_taken_as_they_are_typed(pattern):
    assert understand(quote_text_options([f"dataset.patient={pattern}"])[0]) == pattern


def test_lists_of_paths():
    runs = ["out/a=b", "out/数 据", "plain"]
    assert understand(quote_text_options([f"runs=[{','.join(runs)}]"])[0]) == runs


@pytest.mark.parametrize(
    "argument",
    [
        "dataset.root=/data/plain", "dataset.root=null", "dataset.root='a b'", 'run="x=y"', "run=",
        "runs=[a,b]", "run=${oc.env:HOME}/x", "seed=1 seed=2", "optimizer.lr=[1", "seed=数",
        "patient=null", "model=setr,cvt", "dataset.image_size=[64,64]", "run", "", "=x", "-m",
    ],
)  # fmt: skip
def test_everything_else_stays_as_it_is(argument):
    assert quote_text_options([argument]) == [argument]


def test_a_sweep_over_paths_stays_one(tmp_path):
    (tmp_path / "c,d").mkdir()
    sweep = ["-m", "dataset.root=/a,/b", f"dataset.root={tmp_path}/c,d"]
    assert quote_text_options(sweep) == [*sweep[:2], f"dataset.root='{tmp_path}/c,d'"]
    assert quote_text_options(["input=/a,/b"]) == ["input='/a,/b'"]


def test_home_is_expanded_where_shells_do_not(monkeypatch):
    monkeypatch.setenv("HOME", "/home/a=b")
    assert quote_text_options(["dataset.root=~/x"]) == ["dataset.root='/home/a=b/x'"]


@pytest.mark.parametrize("value", ["a (copy)", "a'b=é{y"])
def test_the_argument_is_printed_as_it_must_be_typed(value):
    """Where an option may take other things than text, quotes decide, and the shell has its own."""
    with pytest.raises(ConfigError) as error:
        compose_raw(train.COMMAND, [f"study.name={value}"])
    message = str(error.value)
    assert message.startswith(f"study.name={value}: not KEY=VALUE; quote values")
    (typed,) = shlex.split(message.partition(", as in ")[2])
    assert typed == f'study.name="{value}"'
    with pytest.raises(ConfigError, match=r"study\.name: no such key"):  # It is understood now.
        compose_raw(train.COMMAND, [typed])


@pytest.mark.parametrize("argument", ["seed=1 seed=2", 'a=[b"'])
def test_no_quotes_are_suggested_where_they_do_not_help(argument):
    with pytest.raises(ConfigError) as error:
        compose_raw(train.COMMAND, [argument])
    assert str(error.value).endswith("quote values with spaces, commas or brackets")
