"""Options of `attnseg probe`."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from attnseg.config.errors import OptionError
from attnseg.config.nodes import Names, Node
from attnseg.config.training import Config

UNITS = {"s": 1, "min": 60, "h": 3600}  # seconds


def _as_seconds(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", value)
        if match is None:
            raise OptionError("", f"{value!r} is no duration; give one such as 90s, 15min or 2h")
        return float(match[1]) * UNITS[match[2]]
    return float(value) if isinstance(value, int) else value


def _as_seeds(value: object) -> object:
    return list(range(value)) if isinstance(value, int) else value


class Battery(Node):
    """The attentions, the probes and the machine.

    Attributes:
        attn: names of attentions; `all` is every choice of `attn`.
        probes: names of probes; `all` is every one.
        seeds: of the initial weights and of the pictures; a number n stands for 0 to n - 1.
        budget: seconds after which no further training starts; a text such as `15min`, too.
        jobs: trainings at a time, each with one thread; by default one per core, or one on a GPU.
        device: by default a GPU if there is one.
        precision: of the matrix products; networks as small as these are faster in 32 bits.
        enlarge: side of the square of pixels that each pixel of the probes becomes.
        steps: optimizer steps of a training; by default those of the skeleton.
        scaled: options of single attentions in the probes' own network, whose grid is so small
            that the published sizes of windows would cover it.
    """

    attn: Annotated[Names, Field(min_length=1)]
    probes: Annotated[Names, Field(min_length=1)]
    seeds: Annotated[list[NonNegativeInt], BeforeValidator(_as_seeds), Field(min_length=1)]
    budget: Annotated[float, BeforeValidator(_as_seconds), Field(gt=0)]
    jobs: PositiveInt | None
    device: Literal["cpu", "cuda"] | None
    precision: Literal["32", "bf16-mixed"]
    enlarge: PositiveInt
    steps: PositiveInt | None
    scaled: dict[str, list[str]]


class ProbeOptions(Config):
    """A training run, of which model and attention are probed.

    Attributes:
        probe: the attentions, the probes and the machine.
    """

    probe: Battery
