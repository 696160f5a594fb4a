"""The fast form of the probes: every attention against its declaration, and broken ones."""

from dataclasses import replace

import pytest
import torch

from attnseg.attention import groups, softmax
from attnseg.attention.attention import Attention
from attnseg.config.folder import list_attentions
from attnseg.layers import sight
from attnseg.probes.probe import find_probe, list_probes
from attnseg.probes.skeleton import SKELETON
from attnseg.probing.battery import describe_subject
from attnseg.probing.run import run_cell
from tests.probing.subjects import make_cell, make_subject

PROBES = ("far_place", "arrow")  # solved after the fewest steps
SEES, BLIND = 0.75, 0.6  # scores, where chance is 0.5
SUM_ERROR = 1e-3  # of weights that should sum to 1


def test_declarations_name_probes():
    names = set(list_probes())
    for attn in list_attentions():
        declared = describe_subject(make_subject(attn), "", 32).sees
        assert set(declared) <= names, attn
        assert set(PROBES) & set(declared), f"{attn} declares nothing that is tested"
    assert {find_probe(name).chance for name in PROBES} == {0.5}
    assert set(sight.FAR + sight.SHARP) <= names


@pytest.mark.full
@pytest.mark.parametrize("attn", list_attentions())
def test_an_attention_sees_what_it_declares(attn):
    declared = describe_subject(make_subject(attn), "", 32).sees
    for probe in PROBES:
        if probe in declared:
            assert judge(attn, probe) == declared[probe], probe


def judge(attn, probe):
    """Whether an attention sees a probe; `None` if that is not clear, or if its maps are wrong."""
    patient = make_cell(attn, probe, 1, SKELETON, may_give_up=True)  # for who learns later
    for cell in (make_cell(attn, probe), patient):
        facts = run_cell(cell).facts
        if (facts["unnormalised"] or 0) > SUM_ERROR:
            return None
        if facts["score"] >= SEES:
            return True
    return False if facts["score"] <= BLIND else None


@pytest.mark.full
def test_a_mask_that_is_forgotten_in_shifted_windows_is_caught(monkeypatch):
    monkeypatch.setattr(groups.Cut, "regions", lambda cut, device: None)
    assert judge("shifted_window", "far_place") is not False  # The border leads to the other one.


@pytest.mark.full
def test_a_softmax_over_the_wrong_axis_is_caught(monkeypatch):
    """By its maps: a network can learn with it, too, if more slowly and not with every seed."""

    def mix(mixing, q, k, v, layout):
        return (mixing.scale * q @ k.mT).softmax(2) @ v

    monkeypatch.setattr(softmax.Softmax, "forward", mix)
    cell = make_cell("qkv", "far_place")
    short = replace(cell, skeleton=replace(cell.skeleton, steps=10))
    assert run_cell(short).facts["unnormalised"] > 10 * SUM_ERROR


def test_exchanged_queries_and_keys_are_the_same_attention_with_other_names():
    """So no network that is trained from scratch can tell; outputs of published weights do.

    The initial weights of both projections are drawn alike. What is not symmetric in queries and
    keys has golden outputs in `tests/golden`, for weights that know which is which.
    """
    torch.manual_seed(0)
    attention, exchanged = Attention(32, 4), Attention(32, 4)
    names = {"q": "k", "k": "q"}
    for name, projection in attention.project.items():
        exchanged.project[names.get(name, name)].load_state_dict(projection.state_dict())
    exchanged.out.load_state_dict(attention.out.state_dict())
    tokens, forward = torch.randn(2, 20, 32), exchanged.mix.forward
    with torch.no_grad():
        wanted = attention(tokens, (4, 5))
        assert not torch.allclose(exchanged(tokens, (4, 5)), wanted, atol=1e-3)
        exchanged.mix.forward = lambda q, k, v, layout: forward(k, q, v, layout)
        assert torch.equal(exchanged(tokens, (4, 5)), wanted)
