"""A plugin's parts are choices like all others; its code is imported only if it is chosen."""

import re
import shutil
import sys

import pytest
import torch
from lightning_fabric.strategies.launchers.subprocess_script import _basic_subprocess_cmd
from torch import nn

import attnseg
from attnseg import plugins
from attnseg.api import parse_keywords
from attnseg.attention import softmax
from attnseg.cli.failures import report_error, translate_error
from attnseg.cli.help import help_text
from attnseg.commands import train
from attnseg.config import cost
from attnseg.config.build import build, locate
from attnseg.config.folder import list_choices
from attnseg.config.identity import identity_of, short_digest
from attnseg.config.nodes import Component
from attnseg.config.training import parse_config
from attnseg.errors import ConfigError
from attnseg.runs.facts import RunFacts
from attnseg.runs.run_folder import CONFIG_PARTS, RunFolder
from attnseg.training import rank_main
from attnseg.training.lightning_trainer import launch_ranks_with_rank_main
from tests.contracts.groups import names
from tests.plugins.conftest import forget
from tests.plugins.package import BLOCKS, install_package

PARTS = [name.split("/")[2:] for name in BLOCKS if name.endswith(".yaml")]
CHOICES = [(group, name.removesuffix(".yaml")) for group, name in PARTS]


def imported() -> list[str]:
    return sorted(name for name in sys.modules if name.partition(".")[0] == "my_attn")


def test_the_page_has_an_example_of_every_kind():
    groups = {"attn", "augment", "dataset", "logger", "loss", "model", "profile", "scheduler"}
    assert {group for group, _ in CHOICES} == groups
    assert len(CHOICES) == len(set(CHOICES)) >= 11


def test_nothing_is_imported_unless_it_is_chosen(installed):
    for group, name in CHOICES:
        assert name in list_choices(group)
    assert "gated" in attnseg.list_attentions() and "plain" in attnseg.list_models()
    assert "Plugins: my_attn 0.3" in help_text(train.COMMAND, ["attn=gated"])
    with pytest.raises(ConfigError, match="did you mean gated"):
        parse_keywords(train.COMMAND, {"attn": "gatd"})
    parse_keywords(train.COMMAND, {})
    assert imported() == []
    attnseg.create_attention("gated", dim=16, num_heads=2)
    assert imported() == ["my_attn", "my_attn.gated"]


def test_without_a_plugin_nothing_is_different(clean):
    forget()
    assert plugins.list_plugins() == {}
    assert list_choices("attn") == names("attn")
    assert "Plugins" not in help_text(train.COMMAND, [])


@pytest.mark.parametrize("attn", ["gated", "strided", "mean"])
def test_attentions(installed, attn):
    model = attnseg.create_model("plain", attn, 1, 3, image_size=(32, 40))
    image = torch.randn(2, 1, 32, 40)
    assert model(image).shape == (2, 3, 32, 40)
    closed, counted = cost.count_attention_macs(model, (1, 32, 40))
    assert closed == counted > 0
    model(image).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_options_of_a_part_are_checked(installed):
    with pytest.raises(ConfigError, match=re.escape("mixing my_attn.gated has no option 'x'")):
        attnseg.create_attention("gated", 16, 2, mixing_options={"x": 1})
    with pytest.raises(ConfigError, match="did you mean smooth"):
        build("loss", component("my_attn.jaccard.Jaccard", smoth=1.0), overlapping=True)
    for wrong in ("my_attn.nope", "my_attn.mean", "my_attn", "others.gated", "my_attn.gated.x"):
        with pytest.raises(ConfigError, match=f"unknown mixing '{wrong}'"):
            attnseg.create_attention("qkv", 16, 2, mixing=wrong)


def component(target, **options):
    return Component.model_validate({"_target_": target, **options})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_attn.gated.torch", "is not defined there"),
        ("my_attn.gated.Mixing", "is not defined there"),
        ("my_attn.discs.np.load", "does not exist"),
        ("my_attn.discs.Path", "is not defined there"),
        ("my_attn.discs._write", "is no class derived from one of attnseg or torch"),
        ("my_attn.discs.DiscsSpec", "is no class derived from one of attnseg or torch"),
        ("my_attn.nope.Gated", "does not exist"),
        ("my_attn", "is not allowed"),
        ("my_attnx.gated.Gated", "is not allowed"),
        ("os.system", "is not allowed"),
    ],
)
def test_a_configuration_cannot_name_what_a_plugin_merely_has(installed, target, message):
    with pytest.raises(ConfigError, match=message):
        locate("model", target)


def test_functions_that_a_choice_names_are_allowed(installed):
    for target in ("my_attn.discs.make_discs", "my_attn.noisy.noisy"):
        assert locate("augment", target).__name__ == target.rpartition(".")[2]


def identity(**options):
    config = parse_keywords(train.COMMAND, {"phantom_size": "tiny", **options})
    return short_digest(identity_of(config))


def test_the_code_of_a_plugin_is_part_of_the_identity_of_runs_that_use_it(
    clean, tmp_path, monkeypatch
):
    before = identity()
    folder = install_package(tmp_path)
    monkeypatch.syspath_prepend(folder)
    forget()
    assert identity() == before
    assert identity(logger="table") == before  # It decides nothing.
    used = [{"attn": "gated"}, {"attn": "strided"}, {"attn": "mean"}, {"loss": "jaccard"}]
    first = [identity(**options) for options in used]
    assert len({before, *first}) == 5
    with (folder / "my_attn/mean.py").open("a") as file:
        file.write("# Another version.\n")
    forget()
    second = [identity(**options) for options in used]
    assert identity() == before
    assert not {*first} & {*second}


def test_a_run_folder_is_refused_without_its_plugin_and_warned_of_with_another(
    clean, package, tmp_path, monkeypatch, caplog
):
    forget()
    kept = {"my_attn": {"version": "0.3", "digest": "0" * 16}}
    (tmp_path / "config.yaml").write_text("".join(f"{part}: {{}}\n" for part in CONFIG_PARTS))

    def reopened(recorded):
        facts = RunFacts(status="done", plugins=recorded)
        (tmp_path / "run.json").write_text(facts.to_json())
        return RunFolder(tmp_path)

    with pytest.raises(ConfigError) as refused:
        reopened(kept).require_done()
    absence = "of plugin my_attn 0.3, which is not installed; install it"
    assert str(refused.value) == f"{tmp_path}: {absence}"
    with pytest.raises(ConfigError, match=r"of plugin my_idea\.py, .*add plugins=\[/a/my_idea\.py"):
        reopened({"my_idea": {"file": "/a/my_idea.py", "digest": ""}}).require_done()
    monkeypatch.syspath_prepend(package)
    forget()
    run = reopened(kept)
    run.require_done()
    run.require_done()
    (warning,) = caplog.messages
    assert "plugin my_attn 0.3 has other code than when the run was trained" in warning
    same = {"my_attn": plugins.list_plugins()["my_attn"].describe()}
    reopened(same).require_done()
    assert len(caplog.messages) == 1


def test_an_exception_in_a_plugin_names_it(installed, capsys, monkeypatch):
    attention = attnseg.create_attention("gated", dim=16, num_heads=2)
    attention.mix.gate = None
    with pytest.raises(AttributeError) as raised:
        attention(torch.zeros(1, 4, 16), (2, 2))
    assert translate_error(raised.value) is None
    assert report_error(raised.value) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: plugin my_attn 0.3: AttributeError: ")
    assert re.search(r"\(gated\.py, line \d+\); correct the plugin, see /", message)
    path = sys.modules["my_attn.gated"].__file__
    other = RuntimeError(f'Caught KeyError.\n  File "{path}", line 7, in forward\nKeyError: 1')
    assert plugins.locate_failure(other)[1] == "gated.py, line 7"
    assert plugins.locate_failure(RuntimeError("of ours")) is None


def test_a_plugin_that_cannot_be_imported_is_named(clean, tmp_path, monkeypatch):
    folder = install_package(tmp_path)
    (folder / "my_attn/mean.py").write_text("def broken(:\n")
    (folder / "my_attn/jaccard.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(folder)
    forget()
    with pytest.raises(ConfigError, match=r"plugin my_attn 0\.3 cannot be imported; SyntaxError"):
        locate("attn", "my_attn.mean.Mean")
    (folder / "my_attn/gated.py").write_text("def broken(:\n")
    with pytest.raises(SyntaxError) as raised:
        attnseg.create_attention("gated", 16, 2)
    assert plugins.locate_failure(raised.value)[1] == "gated.py, line 1"
    with pytest.raises(ConfigError, match="nothing_of_this_name"):
        locate("loss", "my_attn.jaccard.Jaccard")


def test_files_count_on_the_command_line_only(clean, tmp_path, monkeypatch):
    forget()
    monkeypatch.chdir(tmp_path)
    text = BLOCKS["my_attn/gated.py"].replace("Gated", "MyIdea")
    (tmp_path / "my_idea.py").write_text(text)
    options = {"attn.mixing": "my_idea", "model": "setr"}

    def built(config):
        return build("attn", config.attn, dim=16, num_heads=2)

    with pytest.raises(ConfigError, match="unknown mixing 'my_idea'"):
        built(parse_keywords(train.COMMAND, options))
    experiment = tmp_path / "configs/experiment/mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\nplugins: [my_idea.py]\n")
    for sneaking in ({"experiment": "mine"}, {"+plugins": ["my_idea.py"]}):
        with pytest.raises(ConfigError, match="plugins: in a file; only the command line"):
            parse_keywords(train.COMMAND, {**options, **sneaking})
    config = parse_keywords(train.COMMAND, {**options, "plugins": ["my_idea.py"]})
    assert type(built(config).mix).__name__ == "MyIdea"
    raw = {**config.model_dump(by_alias=True), "plugins": ["my_idea.py"]}
    with pytest.raises(ConfigError, match="plugins: no such option"):  # a run folder's file
        parse_config(raw)
    for target in ("my_idea.torch", "my_idea.F", "my_idea.Mixing"):
        with pytest.raises(ConfigError, match="is not defined there"):
            locate("attn", target)
    assert issubclass(locate("attn", "my_idea.MyIdea"), nn.Module)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("nope.py", "nope.py not found"),
        ("text.txt", "is not a Python file"),
        ("my-idea.py", "is not a Python file"),
        ("json.py", "another module is called json"),
        ("torch.py", "another module is called torch"),
    ],
)
def test_wrong_files_are_refused(clean, tmp_path, monkeypatch, file, message):
    monkeypatch.chdir(tmp_path)
    if file != "nope.py":
        (tmp_path / file).touch()
    with pytest.raises(ConfigError, match=re.escape(message)):
        plugins.add_files([file])


def test_the_other_ranks_of_a_run_get_the_files(clean, tmp_path, monkeypatch):
    file = tmp_path / "my_idea.py"
    file.touch()
    plugins.add_files([str(file)])
    with launch_ranks_with_rank_main(tmp_path):
        _, *arguments = _basic_subprocess_cmd()
    assert arguments == [rank_main.__file__, str(tmp_path), str(file)]
    plugins._files.clear()
    monkeypatch.setattr(sys, "argv", [*arguments, 'hydra.run.dir="outputs"'])  # by Lightning
    monkeypatch.setattr(rank_main, "RunFolder", lambda folder: None)
    with pytest.raises(AttributeError):
        rank_main.run_rank()
    assert plugins.list_added_files() == [str(file)]


def test_a_file_named_as_a_mixing_of_ours_is_refused(clean, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(softmax.__file__, tmp_path / "softmax.py")
    plugins.add_files(["softmax.py"])
    with pytest.raises(ConfigError, match="'softmax' is the name of a plugin and of a part"):
        attnseg.create_attention("qkv", 16, 2)


def test_arguments():
    given = ["-m", "plugins=[a.py,'b c.py']", "attn=kv", "plugins=d.py", "plugins=[]"]
    assert plugins.split_arguments(given) == (["a.py", "b c.py", "d.py"], ["-m", "attn=kv"])
