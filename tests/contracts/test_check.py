"""Every contract finds the network that breaks it, and `attnseg check` reports it."""

from functools import partial

import pytest
import torch
from torch import nn

from attnseg.cli import main
from attnseg.contracts import losses, networks, profiles
from attnseg.contracts.check import check_networks
from attnseg.layers.tokens import TokenMixer
from attnseg.metrics.profiles.profile import Metric
from attnseg.metrics.profiles.strict import Strict
from attnseg.models.setr import SETR
from tests.contracts.pairs import attending_models
from tests.contracts.test_models import make
from tests.metrics.test_profiles import PROFILES


class Honest(TokenMixer):
    """Adds a projected mean of all tokens."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.out = nn.Linear(self.dim, self.dim)

    def forward(self, x, grid, context=None, context_grid=None):
        return self.out(x + x.mean(1, keepdim=True))

    def macs(self, tokens, grid, context=None, context_grid=None):
        return tokens * self.dim**2


class Dead(Honest):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unused = nn.Parameter(torch.zeros(1))


class Miscounted(Honest):
    def macs(self, tokens, grid, context=None, context_grid=None):
        return tokens * self.dim


class AcrossItems(Honest):
    def forward(self, x, grid, context=None, context_grid=None):
        return self.out(x + x.mean((0, 1)))


class OneSize(Honest):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.table = nn.Parameter(torch.randn(self.place.grid[0] * self.place.grid[1] + 1, 1))

    def forward(self, x, grid, context=None, context_grid=None):
        return super().forward(x + self.table, grid)


class Overflowing(Honest):
    def forward(self, x, grid, context=None, context_grid=None):
        return super().forward(x, grid) + (x - x.detach()).abs().sqrt()  # 0, with no slope


class NoGraph(Honest):
    def forward(self, x, grid, context=None, context_grid=None):
        return super().forward(x, grid) * (2 if float(x.detach().sum()) > 0 else 1)


class Rough(Honest):
    def forward(self, x, grid, context=None, context_grid=None):
        precise = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return super().forward(x, grid) * (1 if precise else 100)


def network(mixer, channels=1, classes=3):
    torch.manual_seed(0)
    return SETR(
        in_channels=channels, num_classes=classes, image_size=(32, 48), attn=mixer,
        size="tiny", depth=2, auxiliary=False,
    )  # fmt: skip


def test_an_honest_mixer_keeps_every_cheap_contract():
    for name, contract in networks.CONTRACTS.items():
        if name != "ONNX":
            assert contract(partial(network, Honest)).problem == "", name


@pytest.mark.parametrize(
    ("contract", "mixer", "problem"),
    [
        ("gradients", Dead, "unused gets no gradient"),
        ("gradients", Overflowing, "is not finite"),
        ("training", Overflowing, "does not fall"),
        ("MACs", Miscounted, "PyTorch"),
        ("independence", AcrossItems, "differ by"),
        ("bfloat16", Rough, "differ by"),
    ],
)
def test_a_broken_contract_is_named(contract, mixer, problem):
    assert problem in networks.CONTRACTS[contract](partial(network, mixer)).problem


@pytest.mark.parametrize(("contract", "mixer"), [("sizes", OneSize), ("graph", NoGraph)])
def test_what_a_mixer_raises_breaks_the_contract(contract, mixer, monkeypatch):
    with pytest.raises(Exception, match=r"size of tensor|data-dependent|float"):
        networks.CONTRACTS[contract](partial(network, mixer))
    monkeypatch.setattr("attnseg.contracts.check.build_model", lambda *_: network(mixer))
    monkeypatch.setattr(networks, "CONTRACTS", {contract: networks.CONTRACTS[contract]})
    (problem,) = check_networks({"setr mine": _config()})
    assert problem.startswith(f"setr mine: {contract}: ")


def _config():
    from attnseg.config.training import parse_config
    from tests.contracts.groups import compose

    return parse_config(compose("model=setr", "attn=qkv", "model.size=tiny"))


def test_a_model_that_ignores_its_image_is_found():
    def blank(channels=1, classes=3):
        net = make("setr", "qkv", channels, classes)
        for parameter in net.embed.proj.parameters():
            nn.init.zeros_(parameter)
        return net

    assert "same logits" in networks.check_independence(blank).problem


class Upside(nn.Module):
    """A loss that prefers the wrong answer."""

    def forward(self, logits, target):
        return -nn.functional.cross_entropy(logits, target.long())


class Infinite(nn.Module):
    def forward(self, logits, target):
        return (logits.sum() / (target.sum() * 0.0)) ** 2


def test_the_order_and_the_gradients_of_a_loss():
    assert "order" in losses.check_ranking(Upside(), False).problem
    assert "not finite" in losses.check_finiteness(Infinite(), False).problem


class Unscored(Strict):
    metrics = (*Strict.metrics, Metric("sharpness", "sharpness"))


class Vanishing(Strict):
    def score(self, truth, prediction, spacing):
        return super().score(truth, prediction, spacing) if truth.any() else {"dice": 1.0}


class Generous(Strict):
    def score(self, truth, prediction, spacing):
        scores = super().score(truth, prediction, spacing)
        return {**scores, "dice": 2.0 if truth.any() > prediction.any() else scores["dice"]}


def test_broken_profiles_are_found():
    assert "sharpness is declared" in profiles.check_completeness(Unscored()).problem
    assert "spurious: accuracy" in profiles.check_completeness(Vanishing()).problem
    assert "dice: a missed" in profiles.check_direction(Generous()).problem


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_scores_what_it_declares(name):
    assert profiles.check_completeness(PROFILES[name]).problem == ""


def test_the_command_reports_kept_and_broken_promises(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["attnseg", "check", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, capsys.readouterr()

    monkeypatch.setattr(networks, "CONTRACTS", {"MACs": networks.check_macs})
    code, printed = run("model=setr", "attn=kv", "loss=ce")
    assert code == 0, printed
    assert "setr kv" in printed.out and "exclusive" in printed.out
    monkeypatch.setattr("attnseg.attention.attention.Attention.macs", lambda *_: 1)
    code, printed = run("attn=kv")
    assert code == 3
    assert printed.out.count("broken: ") == len(attending_models())
    code, printed = run("model=setr", "attn.mixing=efficient")
    assert code == 3 and "setr qkv" in printed.out
    assert run()[0] == 2
    code, printed = run("attn=none")
    assert code == 0 and "unet none" in printed.out and "setr" not in printed.out
