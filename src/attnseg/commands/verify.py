"""Verifies a capsule: its files by their digests, then its network on the input that it contains.

attnseg verify FILE.zip
attnseg verify capsule=FILE.zip
"""

import re

from pydantic import NonNegativeInt

from attnseg.commands.command import Command
from attnseg.config.nodes import CommandOptions, Folder
from attnseg.errors import require


class Verify(CommandOptions):
    """Options of `attnseg verify`.

    A capsule is a zip file with an exported network, its preprocessing, a test input and the output
    that the network must give for it. A local file is verified offline, and none needs torch.

    Attributes:
        capsule: a file, or the address of one on the Hugging Face Hub.
        threads: of ONNX Runtime; 0 is its own choice.
    """

    capsule: Folder
    threads: NonNegativeInt


def run(options: Verify) -> None:
    """Fetch the capsule if it is on the Hub, and verify it."""
    from attnseg.prediction.capsule import verify_capsule
    from attnseg.prediction.hub import fetch_capsule

    require("backend", "predict", "onnx", "onnxruntime")  # of the extra `predict`
    verify_capsule(fetch_capsule(options.capsule), options.threads)


def as_capsule(arguments: list[str]) -> list[str]:
    """Let `FILE.zip` stand for `capsule=FILE.zip`."""
    return [re.sub(r"^([^-=][^=]*\.zip)$", r"capsule=\1", given) for given in arguments]


COMMAND = Command("verify", __doc__, Verify, run, translate=as_capsule)
