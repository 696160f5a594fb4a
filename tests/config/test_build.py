"""A configuration can build what it should, and nothing else."""

import re

import pytest
import torch

from attnseg.config.build import build, factory, locate
from attnseg.config.nodes import Component
from attnseg.errors import ConfigError


def component(target: str, **options):
    return Component.model_validate({"_target_": target, **options})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "numpy.load",
        "torch.optim.Adam",
        "attnseg.files.write_text",
        "attnseg.cli.main",
        "attnseg.data.store.shutil.rmtree",
        "attnseg.data.store.shutil",
        "attnseg.data.store.json",
        "attnseg.models.setr.nn",
        "attnseg.models.setr.Nope",
        "attnseg.models.nope.SETR",
        "attnseg.models..setr.SETR",
        "attnseg",
        "",
    ],
)
def test_targets_outside_the_registry_are_refused(target):
    with pytest.raises(ConfigError, match=r"model\._target_"):
        locate("model", target)


def test_options_fill_the_class():
    loss = build(
        "loss", component("attnseg.losses.dice_ce.DiceCE", dice_weight=1.0), overlapping=True
    )
    assert (loss.dice_weight, loss.ce_weight) == (1.0, 0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dice_wieght": 1.0}, "loss.dice_wieght: no such option; did you mean dice_weight"),
        ({"dice_weight": "much"}, "loss.dice_weight: 'much' is not allowed"),
        ({"dice_weight": None}, "loss.dice_weight: None is not allowed"),
        ({"squared": 1}, "loss.squared: 1 is not allowed"),
        ({"class_weights": ["a"]}, "loss.class_weights"),
        ({"dice_weight": -1.0}, "loss: dice_weight -1.0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build("loss", component("attnseg.losses.dice_ce.DiceCE", **options), overlapping=True)


def test_named_optimizers_are_checked_like_ours():
    make = factory(
        "optimizer", component("torch.optim.AdamW", lr=0.1, betas=[0.9, 0.99]), ("params",)
    )
    optimizer = make([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["betas"] == (0.9, 0.99)
    with pytest.raises(ConfigError, match=r"optimizer\.momentum: no such option"):
        factory("optimizer", component("torch.optim.AdamW", momentum=0.1), ("params",))
