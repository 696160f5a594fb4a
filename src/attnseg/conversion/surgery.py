"""Carries the weights of a network over to the same network with another attention.

All that is not attention is kept. Within an attention, what has the same name and shape is kept;
projections are taken by role: those of query, key and value come from the projections that gave
query, key and value before. Roles that share a projection now, and had their own, are tied by a
method:

- `average`: the mean of the projections;
- `query`, `key`, `value`: the projection of that role;
- `solve`: the projection that keeps scores and values best, see `shared_projections`. Projections
  that are not linear in each token, such as convolutions, are averaged.

Parts that only the new attention has, such as position biases, start neutral where they can, see
`Mixing.start_neutral`; all others keep their initial values and are named in the report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from attnseg.attention.attention import Attention, LinearProjection
from attnseg.config.cost import find_attentions
from attnseg.conversion.moments import SiteMoments
from attnseg.conversion.shared_projections import (
    Heads,
    share_key_value,
    share_query_key,
    take_values,
)
from attnseg.layers.factored import fuse_factors, load_fused

Method = Literal["solve", "average", "query", "key", "value"]
ROLES = {"q": "query", "k": "key", "v": "value"}
Weights = dict[str, Tensor]


@dataclass
class SiteReport:
    """The outcome at one attention, by names of its tensors or projections.

    Attributes:
        kept: tensors that are as they were.
        tied: projections that several former ones became, each with how.
        neutral: tensors that are new and change nothing yet.
        fresh: tensors that are new and have their initial values.
        lost: former tensors that have no place any more.
    """

    kept: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    neutral: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def convert_model(
    model: nn.Module,
    original: nn.Module,
    method: Method,
    moments: Mapping[str, SiteMoments],
) -> dict[str, SiteReport]:
    """Give a model the weights of a network that differs from it in its attentions only.

    Args:
        model: changed in place.
        original: the trained network.
        method: how projections are tied.
        moments: of the original's tokens by attention, for the method `solve`.

    Returns:
        A report for each attention, by its name in the model.

    Raises:
        ValueError: the networks differ outside of their attentions, or the method names a role that
            shares no projection.
    """
    new, old = find_attentions(model), find_attentions(original)
    if new.keys() != old.keys():
        raise ValueError("the networks have attentions at different places")
    own, theirs = (_outside(net, new) for net in (model, original))
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in theirs.items()}:
        raise ValueError("the networks differ outside of their attentions")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(theirs[name])
    return {
        name: convert_site(mixer, old[name], method, moments.get(name))
        for name, mixer in new.items()
    }


@torch.no_grad()
def convert_site(
    new: nn.Module, old: nn.Module, method: Method, moments: SiteMoments | None = None
) -> SiteReport:
    """Give one attention, or what stands in its place, the weights of another; see the module.

    Raises:
        ValueError: the method names a role that shares no projection.
    """
    fused, plain = fuse_factors(new), fuse_factors(old)
    if (fused is new) != (plain is old):  # Factors on one side only are converted as their product.
        report = convert_site(fused, plain, method, moments)
        load_fused(new, fused)
        return report
    report = SiteReport()
    own, theirs = new.state_dict(), old.state_dict()
    initial = {name: tensor.clone() for name, tensor in own.items()}
    if isinstance(new, Attention):
        new.mix.start_neutral()
    by_role = isinstance(new, Attention) and isinstance(old, Attention)
    used = set()
    for name, tensor in own.items():
        if by_role and name.startswith("project."):
            continue
        if name in theirs and theirs[name].shape == tensor.shape:
            tensor.copy_(theirs[name])
            report.kept.append(name)
            used.add(name)
        else:
            changed = not torch.equal(tensor, initial[name])
            (report.neutral if changed else report.fresh).append(name)
    if isinstance(new, Attention) and isinstance(old, Attention):
        used |= _carry_projections(new, old, method, moments, report)
    report.lost = [name for name in theirs if name not in used]
    return report


def find_sources(new: Attention, old: Attention) -> dict[str, list[str]]:
    """Return, for each projection of the new attention, those of the old one that it replaces."""
    return {
        name: list(
            dict.fromkeys(old.reads[role] for role, shared in new.reads.items() if shared == name)
        )
        for name in new.project
    }


def _carry_projections(
    new: Attention,
    old: Attention,
    method: Method,
    moments: SiteMoments | None,
    report: SiteReport,
) -> set[str]:
    """Fill the projections of an attention; return the names of the old tensors that went in."""
    used = set()
    # Solving for a shared projection changes others, which must be there already.
    for name, sources in sorted(find_sources(new, old).items(), key=lambda item: len(item[1])):
        target = new.project[name].state_dict()
        given = [old.project[source].state_dict() for source in sources]
        shapes = [{n: t.shape for n, t in weights.items()} for weights in (target, *given)]
        if any(shape != shapes[0] for shape in shapes):
            report.fresh += [f"project.{name}.{part}" for part in target]
            continue
        used |= {f"project.{source}.{part}" for source in sources for part in target}
        roles = [role for role, shared in new.reads.items() if shared == name]
        if len(sources) == 1:
            chosen, how = given[0], ""
        elif method in ROLES.values():
            if method[0] not in roles:
                tied = " or ".join(ROLES[role] for role in roles)
                raise ValueError(f"the {method} shares no projection; use {tied}")
            chosen, how = old.project[old.reads[method[0]]].state_dict(), f"that of the {method}"
        else:
            chosen, how = _average(given), f"average of {' and '.join(sources)}"
            linear = all(type(old.project[source]) is LinearProjection for source in sources)
            if method == "solve" and linear and moments is not None:
                how = f"solved for {' and '.join(sources)}"
                chosen, fitted = _solve(new, old, roles, moments)
                if fitted:
                    report.kept = [each for each in report.kept if not each.startswith(fitted)]
                    report.tied[fitted] = f"fitted to {name}"
            elif method == "solve":
                how += ", as it is not linear in each token"
        for part, tensor in target.items():
            tensor.copy_(chosen[part])
        if how:
            report.tied[name] = how
        else:
            report.kept += [f"project.{name}.{part}" for part in target]
    return used


def _solve(
    new: Attention, old: Attention, roles: list[str], moments: SiteMoments
) -> tuple[Weights, str]:
    """Return the shared projection of some roles, and the name of the layer changed to fit it."""
    query, key, value = (_heads_of(old, role) for role in "qkv")
    out = old.out.weight.double().unflatten(1, (old.num_heads, -1)).transpose(0, 1)
    if roles == ["k", "v"]:
        turned, shared = share_key_value(query, key, value, out, moments)
        _set_projection(new.project[new.reads["q"]], turned)
        return _weights_of(shared), f"project.{new.reads['q']}"
    shared = query
    if old.reads["q"] != old.reads["k"]:
        shared = share_query_key(query, key, moments)
    if "v" not in roles:
        return _weights_of(shared), ""
    weight, bias = take_values(shared, value, out, moments.keys)
    new.out.weight.copy_(weight.transpose(0, 1).flatten(1))
    new.out.bias.copy_(old.out.bias.double() + bias)
    return _weights_of(shared), "out"


def _heads_of(attention: Attention, role: str) -> Heads:
    linear = attention.project[attention.reads[role]].get_submodule("linear")
    assert isinstance(linear, nn.Linear)
    heads = (attention.num_heads, -1)
    weight = linear.weight.double().unflatten(0, heads).mT
    return Heads(weight, None if linear.bias is None else linear.bias.double().unflatten(0, heads))


def _weights_of(projection: Heads) -> Weights:
    weights = {"linear.weight": projection.weight.mT.flatten(0, 1)}
    if projection.bias is not None:
        weights["linear.bias"] = projection.bias.flatten()
    return weights


def _set_projection(module: nn.Module, projection: Heads) -> None:
    for name, tensor in _weights_of(projection).items():
        module.get_parameter(name).copy_(tensor)


def _average(given: list[Weights]) -> Weights:
    return {
        name: torch.stack([weights[name].double() for weights in given]).mean(0)
        for name in given[0]
    }


def _outside(model: nn.Module, sites: Mapping[str, nn.Module]) -> Weights:
    inside = tuple(f"{name}." for name in sites)
    return {n: t for n, t in model.state_dict().items() if not n.startswith(inside)}
