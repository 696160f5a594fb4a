"""Pairs of models and attentions: a cover for the usual tiers, the product for the slow one."""

import importlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from attnseg.attention import attention
from attnseg.attention.mixing import Mixing
from attnseg.config.folder import NO_ATTENTION, attentions_of, list_attentions, read_defaults
from tests.contracts.groups import names

LIGHT = ("cvt", "setr")  # models that are traced and translated the fastest


def product() -> list[tuple[str, str]]:
    """Every model that takes an attention with every attention, as `configs/` has them."""
    return [(model, attn) for model in attending_models() for attn in attentions()]


def attentions() -> list[str]:
    """The attentions, without the one name that stands for models without attention."""
    return list_attentions()


def attending_models() -> list[str]:
    """The models that take an attention."""
    return [name for name in names("model") if attentions_of(name) == attentions()]


def bare() -> list[tuple[str, str]]:
    """The models without attention, each with the name that stands for none."""
    return [(name, NO_ATTENTION) for name in names("model") if name not in attending_models()]


def cover() -> list[tuple[str, str]]:
    """The fewest neighbouring pairs in which every model and every attention occurs."""
    models, attns = attending_models(), attentions()
    at_model = at_attn = 0
    pairs = [(models[0], attns[0])]
    while (at_model, at_attn) != (len(models) - 1, len(attns) - 1):
        # A staircase through the product: it steps to the side that has more left to cover.
        if (len(attns) - 1 - at_attn) * len(models) > (len(models) - 1 - at_model) * len(attns):
            at_attn += 1
        else:
            at_model += 1
        pairs.append((models[at_model], attns[at_attn]))
    return pairs


def light_cover() -> list[tuple[str, str]]:
    """Every attention in one of the light models, and every other model with its own attention."""
    pairs = [(LIGHT[at % len(LIGHT)], attn) for at, attn in enumerate(attentions())]
    others = [model for model in attending_models() if model not in LIGHT]
    return [*pairs, *((model, own_attention(model)) for model in others)]


def own_attention(model: str) -> str:
    """The attention that a model has unless another one is chosen."""
    key = "override /attn@_global_.attn"
    (attn,) = (entry[key] for entry in read_defaults("model", model) if key in entry)
    return attn


def mixings() -> list[str]:
    """The files of `attention/` that hold a mixing."""
    stems = sorted(path.stem for path in Path(attention.__file__).parent.glob("*.py"))
    return [stem for stem in stems if _holds_mixing(stem)]


def _holds_mixing(stem: str) -> bool:
    module = importlib.import_module(f"attnseg.attention.{stem}")
    candidate = getattr(module, "".join(part.capitalize() for part in stem.split("_")), None)
    if not isinstance(candidate, type) or candidate is Mixing:
        return False
    return issubclass(candidate, Mixing)


def _each_pair(
    pairs: Iterable[tuple[str, str]], covered: tuple[pytest.MarkDecorator, ...]
) -> pytest.MarkDecorator:
    usual = {*pairs, *bare()}
    return pytest.mark.parametrize(
        ("model", "attn"),
        [
            pytest.param(*p, id="-".join(p), marks=covered if p in usual else pytest.mark.slow)
            for p in [*product(), *bare()]
        ],
    )


# These decorate a test of (model, attn); pairs beyond the cover need `-m slow`.
each_pair = _each_pair(cover(), ())
each_pair_in_full = _each_pair(light_cover(), (pytest.mark.full,))  # for what takes seconds
