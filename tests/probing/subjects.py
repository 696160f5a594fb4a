"""Attentions in the probes' own network, as `attnseg probe` composes them."""

from functools import cache

import yaml

from attnseg.config.composition import compose, to_raw
from attnseg.config.folder import configs_folder
from attnseg.config.training import Config, parse_config
from attnseg.probes.skeleton import SKELETON, Skeleton
from attnseg.probing.battery import make_plan
from attnseg.probing.probing import make_small_model
from attnseg.probing.run import Cell, Subject

FAST = make_plan(SKELETON, 150)  # steps after which whoever sees is far above chance


@cache
def make_config(attn: str, *overrides: str) -> Config:
    return parse_config(to_raw(compose("train", [f"attn={attn}", *overrides])))


def make_subject(attn: str) -> Subject:
    plan = yaml.safe_load((configs_folder() / "probe.yaml").read_text())["probe"]
    config = make_config(attn, *plan["scaled"].get(attn, []))
    return Subject(attn, make_small_model(config.model), config.attn)


def make_cell(attn: str, probe: str, seed: int = 0, plan: Skeleton = FAST, **options) -> Cell:
    return Cell(make_subject(attn), probe, seed, plan, **options)
