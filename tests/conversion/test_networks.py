"""Any attention becomes any other, in any model."""

import pytest
import torch

from attnseg.config.cost import find_attentions
from attnseg.conversion.moments import measure_moments
from attnseg.conversion.surgery import convert_model
from tests.contracts.pairs import attending_models, attentions
from tests.contracts.test_models import SIZE, make


def convert(model, before, after, method="solve", seed=0):
    torch.manual_seed(seed)
    old, new = make(model, before).eval(), make(model, after).eval()
    images = torch.randn(4, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    return old, new, convert_model(new, old, method, measure_moments(old, [images])), images


def check(model, before, after):
    old, new, sites, images = convert(model, before, after)
    assert new(images).isfinite().all()
    outside = tuple(f"{name}." for name in sites)
    theirs = old.state_dict()
    for name, tensor in new.state_dict().items():
        if not name.startswith(outside):
            assert torch.equal(tensor, theirs[name]), name
    mixers = find_attentions(new)
    for name, report in sites.items():  # Every tensor is accounted for, once.
        tied = tuple(f"project.{part}." for part in report.tied) + tuple(
            f"{part}." for part in report.tied
        )
        others = [n for n in mixers[name].state_dict() if not n.startswith(tied)]
        assert sorted(report.kept + report.neutral + report.fresh) == sorted(others), name
    return sites


def test_every_attention_becomes_every_other():
    names = attentions()
    pairs = [("qkv", name) for name in names] + [(name, "kv") for name in names]
    for before, after in pairs:
        sites = check("setr", before, after)
        if before == after:
            assert not any(site.fresh or site.lost or site.tied for site in sites.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", attending_models())
def test_every_attention_becomes_every_other_in_every_model(model):
    for before in attentions():
        for after in attentions():
            check(model, before, after)


def test_convolutions_are_averaged_and_named():
    *_, sites, _ = convert("cvt", "qkv", "kv")
    how = {site.tied["qk"] for site in sites.values()}
    assert how == {"average of q and k, as it is not linear in each token"}
    assert all(not site.fresh and not site.lost for site in sites.values())


def test_solving_changes_the_network_least():
    distances = {}
    for method in ("solve", "average", "query", "key"):
        old, new, sites, images = convert("setr", "qkv", "kv", method)
        assert all(site.tied for site in sites.values())
        distances[method] = (new(images) - old(images)).norm().item()
    assert distances["solve"] == min(distances.values())


def test_the_same_conversion_has_the_same_bits():
    first, second = (convert("setr", "qkv", "kv_pos")[1].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
