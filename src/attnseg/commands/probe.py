"""Tests what attentions can see: trains each on small generated probes, and draws a chart.

attnseg probe                                   every attention, in a small SETR
attnseg probe attn=qkv,kv probes=arrow,nearest seeds=5
attnseg probe attn=window attn.mixing_options.size=2 match=macs
attnseg probe attn=all model=cvt probes=far_place probe.enlarge=4 budget=2h
attnseg probe plugins=[my_idea.py] attn=my_idea
"""

import re
from collections.abc import Sequence

from attnseg.commands.command import Command, Invocation
from attnseg.config.folder import attentions_of, read_about
from attnseg.config.training import Config, parse_config
from attnseg.errors import ConfigError
from attnseg.probing.options import ProbeOptions
from attnseg.progress import loading_note

LISTS = ("attn", "probes")  # given as NAME,NAME
SHORT = ("budget", "seeds", "jobs", "device")  # of `probe.`


def run(options: ProbeOptions, invocation: Invocation) -> None:
    """Probe the attentions that the command line names."""
    with loading_note():
        from attnseg.probing.probing import probe_attentions
    named = any(re.match(r"\+*model=", each) for each in invocation.overrides)
    model = options.choices["model"]
    names = attentions_of(model) if options.probe.attn == ["all"] else options.probe.attn
    own = [each for each in invocation.overrides if re.match(r"\+*attn[.@]", each)]
    if own and len(names) > 1:
        raise ConfigError(f"{own[0]}: an option of one attention; name a single attn")
    configs: dict[str, Config] = {}
    about: dict[str, str] = {}
    for name in names:
        scaled = [] if named or own else options.probe.scaled.get(name, [])
        raw = invocation.compose([*invocation.overrides, f"attn={name}", *scaled])
        configs[name] = parse_config({key: raw[key] for key in raw if key != "probe"})
        about[name] = "; here ".join([read_about("attn", name), *scaled])
    command = " ".join(["attnseg probe", *invocation.overrides])
    probe_attentions(options, configs, about, named, not own and not named, command)


def to_options(arguments: Sequence[str]) -> list[str]:
    """Translate `attn=a,b`, `probes=a,b`, `budget=15min`, `seeds=5` and `match=macs`."""
    translated = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in LISTS and value:
            names = value.strip("[]")
            if key == "attn" and "," not in names and names != "all":
                translated.append(f"attn={names}")  # so that its own options are known
            argument = f"probe.{key}=[{names}]"
        elif key in SHORT:
            argument = f"probe.{argument}"
        elif key == "match":
            argument = f"model.{argument}"
        translated.append(argument)
    return translated


COMMAND = Command(
    "probe", __doc__, ProbeOptions, run_invocation=run, translate=to_options,
    conveniences=("attn=all", "budget=15min", "seeds=5", "match=macs"),
)  # fmt: skip
