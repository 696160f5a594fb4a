"""Checks a capsule and replays its golden input, offline and without torch.

attnseg verify FILE.zip
attnseg verify capsule=FILE.zip
"""

import re

from pydantic import NonNegativeInt

from attnseg.commands.command import Command
from attnseg.config.nodes import Folder, Node
from attnseg.errors import require


class Verify(Node):
    """The capsule that is verified."""

    choices: dict[str, str]
    capsule: Folder
    threads: NonNegativeInt


def run(options: Verify) -> None:
    """Verify a capsule."""
    from attnseg.prediction.capsule import verify_capsule
    from attnseg.prediction.hub import fetch_capsule

    require("backend", "predict", "onnx", "onnxruntime")
    verify_capsule(fetch_capsule(options.capsule), options.threads)


def as_capsule(arguments: list[str]) -> list[str]:
    """Let `FILE.zip` stand for `capsule=FILE.zip`."""
    return [re.sub(r"^([^-=][^=]*\.zip)$", r"capsule=\1", given) for given in arguments]


COMMAND = Command("verify", __doc__, Verify, run, translate=as_capsule)
