"""Holds an attention, a model, a loss or a metric profile to the promises of the framework.

attnseg check attn=kv                in every model that takes an attention
attnseg check model=setr             with the model's own attention
attnseg check model=setr attn=kv     one pair
attnseg check loss=dice profile=strict
"""

import re

from attnseg.commands.command import Command, Invocation
from attnseg.config.folder import attentions_of, list_choices
from attnseg.config.training import parse_config
from attnseg.contracts.options import Check
from attnseg.errors import ConfigError


def run(options: Check, invocation: Invocation) -> None:
    """Check what the command line names, and exit with 3 if a promise is broken."""
    from attnseg.contracts.check import check_loss, check_networks, check_profile

    # `attn.mixing=...` and `attn@model.channel_attn=...` name an attention, too.
    named = {re.split(r"[.@=]", each.lstrip("+"))[0] for each in invocation.overrides}
    chosen = any(re.match(r"\+*model=", each) for each in invocation.overrides)
    if not named & {"attn", "model", "loss", "profile"}:
        raise ConfigError(
            "check: nothing to check; name it, such as attn=kv, model=setr or loss=ce"
        )
    problems = []
    if named & {"attn", "model"}:
        attn, configs = options.choices["attn"], {}
        taking = [model for model in list_choices("model") if attn in attentions_of(model)]
        for model in [options.choices["model"]] if chosen else taking:
            config = parse_config(invocation.compose([*invocation.overrides, f"model={model}"]))
            configs[f"{model} {config.choices['attn']}"] = config
        problems += check_networks(configs)
    if "loss" in named:
        problems += check_loss(options)
    if "profile" in named:
        problems += check_profile(options)
    for problem in problems:
        print(f"broken: {problem}")
    if problems:
        raise SystemExit(3)


COMMAND = Command("check", __doc__, Check, run_invocation=run)
