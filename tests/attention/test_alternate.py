"""Every other block has the other attention, and both are options of the command line."""

import pytest
import torch

import attnseg
from attnseg.attention.alternate import alternate_attentions
from attnseg.attention.attention import Attention
from attnseg.attention.pool import Pool
from attnseg.config.build import ATTENTION, factory
from attnseg.config.cost import find_attentions
from attnseg.config.nodes import Component
from attnseg.errors import ConfigError
from attnseg.layers.tokens import Place
from tests.contracts.groups import compose
from tests.contracts.test_models import make

PAIR = ("attn@attn.first=kv", "attn@attn.second=pool", "attn.second.size=5")


def test_blocks_take_turns():
    make_first, make_second = (lambda *arguments, n=n: (n, arguments) for n in (1, 2))
    for block in range(4):
        place = Place(block=block)
        chosen = alternate_attentions(
            8, 2, False, 0.5, None, place, first=make_first, second=make_second
        )
        assert chosen == (1 + block % 2, (8, 2, False, 0.5, None, place))


@pytest.mark.parametrize("model", ["setr", "dae_former"])
def test_the_command_line_chooses_both(model):
    """And the network holds the chosen attentions themselves."""
    chosen = find_attentions(make(model, "alternate", options=PAIR))
    mixers = [mixer for name, mixer in chosen.items() if "channel_attn" not in name]
    names = [type(mixer).__name__ for mixer in mixers]
    assert names == ["Attention", "Pool"] * (len(names) // 2) + ["Attention"] * (len(names) % 2)
    assert mixers[0].reads["k"] == "qk"
    assert mixers[1].size == 5


def test_a_site_of_its_own_may_alternate():
    site = "model.channel_attn"
    options = (f"attn@{site}=alternate", f"attn@{site}.second=identity")
    names = [
        type(mixer).__name__
        for name, mixer in find_attentions(make("dae_former", "kv", options=options)).items()
        if "channel_attn" in name
    ]
    assert names[:2] == ["Attention", "Identity"]


def test_parts_are_checked_and_named():
    node = compose("attn=alternate")["attn"]
    node["second"]["sharing"] = "kq"
    with pytest.raises(ConfigError, match=r"^attn\.second: unknown sharing 'kq'"):
        factory("attn", Component.model_validate(node), ATTENTION)
    with pytest.raises(ConfigError, match=r"^attn\.first: 'kv' is not allowed"):
        attnseg.create_attention("alternate", 8, 2, first="kv")


def test_checkpoints_hold_the_chosen_attention():
    place = Place(block=1)
    mixer = alternate_attentions(8, 2, place=place, first=Pool, second=Attention)
    state = Attention(8, 2, place=place).state_dict()
    assert mixer.state_dict().keys() == state.keys()
    mixer.load_state_dict(state)
    x = torch.randn(1, 6, 8)
    assert mixer(x, (2, 3)).shape == x.shape
