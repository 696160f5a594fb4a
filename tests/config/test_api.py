"""The same names and options as on the command line, from Python."""

import pytest
import torch

import attnseg
from attnseg.api import parse_keywords, to_overrides
from attnseg.attention.attention import Attention
from attnseg.cli.help import help_text
from attnseg.commands import train
from attnseg.config.build import ATTENTION, build, factory
from attnseg.config.training import parse_config
from attnseg.errors import CheckpointError, ConfigError
from tests.contracts.groups import compose, names
from tests.contracts.pairs import attentions


def test_names_are_those_of_the_configuration():
    assert attnseg.list_models() == names("model")
    assert attnseg.list_attentions() == attentions()


@pytest.mark.parametrize("name", attentions())
def test_every_attention(name):
    attention = attnseg.create_attention(name, dim=24, num_heads=3)
    x = torch.randn(2, 12, 24)
    assert attention(x, grid=(3, 4)).shape == x.shape


@pytest.mark.parametrize("name", names("model"))
def test_a_model_is_the_one_of_the_command_line(name):
    """Its published attention included."""
    model = attnseg.create_model(
        name, in_channels=2, num_classes=4, size="tiny", image_size=(32, 32)
    )
    config = parse_config(compose(f"model={name}", "model.size=tiny"))
    other = build(
        "model",
        config.model,
        in_channels=2,
        num_classes=4,
        image_size=(32, 32),
        **({"attn": factory("attn", config.attn, ATTENTION)} if config.attn else {}),
    )
    shapes = [{n: p.shape for n, p in m.state_dict().items()} for m in (model, other)]
    assert shapes[0] == shapes[1]


def test_options_and_own_attentions():
    model = attnseg.create_model(
        "setr", attn="kv", num_classes=4, head="mla", size="tiny", image_size=(32, 32)
    )
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 4, 32, 32)
    assert model.encoder[0].attn.reads["k"] == "qk"
    own = attnseg.create_model("setr", attn=Attention, size="tiny", image_size=(32, 32))
    assert isinstance(own.encoder[0].attn, Attention)
    pos = attnseg.create_attention("kv_pos", dim=8, num_heads=1, mixing_options={"pos_dim": 10})
    assert pos.mix.weight.shape == (10,)


def test_wrong_names_and_options():
    with pytest.raises(ConfigError, match="did you mean setr"):
        attnseg.create_model("setrr")
    with pytest.raises(ConfigError, match="did you mean kv_pos"):
        attnseg.create_model("setr", attn="kv_poss")
    with pytest.raises(ConfigError, match="no such option; did you mean head"):
        attnseg.create_model("setr", haed="pup")
    with pytest.raises(CheckpointError, match="no such file"):
        attnseg.create_model("setr", size="tiny", pretrained="nowhere.npz")
    with pytest.raises(AttributeError):
        attnseg.create_modle  # noqa: B018


def test_one_number_for_height_and_width():
    model = attnseg.create_model("setr", size="tiny", image_size=32)
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 1, 32, 32)


def test_keywords_are_composed_and_checked_as_on_the_command_line():
    options = {
        "model": "cvt", "attn": "kv", "dataset": "phantom", "profile": ["strict"], "seed": 3,
        "trainer": {"max_epochs": 1, "ema_decay": None, "open_test": False},
        "optimizer": {"lr": 1e-5}, "paths": {"data": "it's a folder"},
    }  # fmt: skip
    config = parse_keywords(train.COMMAND, options)
    assert config.choices["model"] == "cvt"
    assert (config.seed, config.optimizer.lr) == (3, 1e-5)
    assert (config.trainer.max_epochs, config.trainer.ema_decay) == (1, None)
    assert config.trainer.open_test is False
    assert config.paths.data == "it's a folder"
    with pytest.raises(ConfigError, match=r"trainer\.epochs: no such key; did you mean"):
        parse_keywords(train.COMMAND, {"trainer": {"epochs": 1}})
    with pytest.raises(ConfigError, match="run: give a run folder as run=DIR"):
        attnseg.evaluate(pred="masks")


def test_a_run_folder_is_given_as_it_is():
    assert to_overrides({"run": attnseg.load_run("a b/ID"), "n": (1, None)}) == [
        "run='a b/ID'", "n=[1,null]",
    ]  # fmt: skip


def test_a_folder_of_ones_own_configurations(tmp_path, monkeypatch):
    """`configs/` in the working folder adds choices; what it names passes the gate of targets."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="model: no 'mine'"):
        attnseg.create_model("mine")
    folder = tmp_path / "configs/model"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults: [setr, _self_]\nsize: tiny\ndepth: 2\n")
    (folder / "setr.yaml").write_text("_target_: os.system\n")  # ours goes first
    assert "mine" in attnseg.list_models()
    model = attnseg.create_model("mine", image_size=32)
    assert len(model.encoder) == 2
    (folder / "bare.yaml").write_text(
        "_target_: attnseg.models.setr.SETR\nsize: tiny\npretrained: null\nmatch: null\n"
    )  # without a list of defaults, and so with the usual attention
    assert len(attnseg.create_model("bare", image_size=32).encoder) == 4
    with pytest.raises(ConfigError, match="did you mean mine"):
        attnseg.create_model("minee")
    (folder / "evil.yaml").write_text("defaults: [setr, _self_]\n_target_: os.system\n")
    with pytest.raises(ConfigError, match=r"model\._target_: 'os\.system' is not allowed"):
        attnseg.create_model("evil")
    models = attnseg.list_models()
    assert {"bare", "evil", "mine"} <= set(models)
    assert ", ".join(models) in " ".join(help_text(train.COMMAND, ["model=mine"]).split())
